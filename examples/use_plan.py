"""Answer with a tuned model: the plan picks the configuration, and a leaner one when memory runs out.

python examples/use_plan.py best_plan.json "The capital of France is"
"""

import sys

from kvray import load_plan


def main(plan: str, prompt: str) -> None:
    session = load_plan(plan).load()
    print(session.generate(prompt, max_new_tokens=24))
    print(f"answered by {session.candidate.label}", file=sys.stderr)
    session.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
