"""Tune from Python: measure, look at the winner, save nothing but what kvray leaves in the results folder.

python examples/tune_api.py MODEL [RESULTS]
"""

import sys

from kvray import AttentionBackend, PlanBuilder, TransformersAdapter, TuneConfig, TuningSearch, create_custom_profile


def main(model_id: str, results: str = "./kvray_results") -> None:
    profile = create_custom_profile(
        name="short-chat",
        context_lengths=[64],
        output_lengths=[16],
        weight_ttft=0.5,
        weight_throughput=0.3,
        weight_memory=0.2,
    )
    # Narrowed to one attention implementation and half a minute, as an example; without both all that may win is tried.
    config = TuneConfig(
        model_id=model_id, profile=profile, output_dir=results, attentions=[AttentionBackend.SDPA], budget_s=30
    )
    result = TuningSearch(config=config, adapter=TransformersAdapter()).run()

    for entry in result.analysis.ranking.entries:
        metrics = entry.metrics
        label = entry.record.candidate.label
        print(f"{entry.rank:2}  {label:32} TTFT {metrics.ttft_ms:8.1f} ms  {metrics.decode_tok_s:8.1f} tok/s")
    print(PlanBuilder(result).generate_code_snippet())


if __name__ == "__main__":
    main(*sys.argv[1:])
