"""Text of the generated program, with places for what a candidate decides."""

from __future__ import annotations

LOAD = '''\
def load():
    """Model and tokenizer, ready to generate."""
{tokenizer}
    model = AutoModelForCausalLM.from_pretrained(
{options}
    )
    return model, tokenizer'''

LOAD_RANDOM = '''\
def load():
    """Model and tokenizer. The weights are random, for the architecture was measured: load your own model instead."""
{tokenizer}
    config = AutoConfig.from_pretrained({config})
    torch.manual_seed({seed})
    with torch.device(DEVICE):
        model = AutoModelForCausalLM.from_config(
{options}
        )
    return model.eval(), tokenizer'''

LEFT_PADDING = """\
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token"""

BYTES = '''\
class Bytes:
    """Stands in for the tokenizer that the model's folder lacks: bytes of text as token ids."""

    def __call__(self, text, return_tensors="pt", padding=True):
        rows = [list(one.encode()) for one in ([text] if isinstance(text, str) else text)]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def decode(self, tokens, skip_special_tokens=True):
        return " ".join(map(str, tokens.tolist()))'''

KEPT_CACHE = '''\
@functools.lru_cache(maxsize=1)
def kept_cache(model, rows, tokens):
    """The same cache for all calls of a size, because compiled code is made for its tensors. One call at a time."""
    return {cache}'''

GENERATE = '''\
def generate(model, tokenizer, prompt, max_new_tokens):
    """Continue the prompt greedily; the tokens returned begin with the prompt's."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)'''

GENERATE_BATCH = '''\
def generate(model, tokenizer, prompts, max_new_tokens):
    """Continue each prompt greedily; the tokens returned begin with the prompt's, padded on the left."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True).to(model.device)'''

NO_PADDING = """\
    if not inputs["attention_mask"].all():
        raise ValueError("this cache keeps the first tokens, which would be padding: give prompts of equal length")"""

GENERATE_PAGED = '''\
def generate(model, tokenizer, {prompts}, max_new_tokens):
    """Continue {doc} greedily; the tokens returned begin with the prompt's."""
    rows = [tokenizer(one)["input_ids"] for one in {listed}]
    settings = GenerationConfig(
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=model.generation_config.pad_token_id,
{options}
    )
    wanted = {settings}  # as measured
    known = ContinuousBatchingConfig.__dataclass_fields__  # not every version has both
    paging = ContinuousBatchingConfig(**{{name: value for name, value in wanted.items() if name in known}})
    with model.continuous_batching_context_manager(
        generation_config=settings, continuous_batching_config=paging
    ) as manager:
        names = manager.add_requests(rows, max_new_tokens=max_new_tokens)
        done = {{}}
        while len(done) < len(names):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                done[result.request_id] = result
            elif result is None and not manager.is_running():
                raise RuntimeError("continuous batching stopped by itself")
    return [torch.tensor(ids + done[name].generated_tokens) for ids, name in zip(rows, names)]'''

MAIN = """\
if __name__ == "__main__":
    model, tokenizer = load()
    prompt = sys.argv[1] if len(sys.argv) > 1 else "The capital of France is"
    tokens = generate(model, tokenizer, prompt, max_new_tokens={new_tokens})
    print(tokenizer.decode(tokens[0], skip_special_tokens=True))
"""

MAIN_BATCH = """\
if __name__ == "__main__":
    model, tokenizer = load()
    prompts = sys.argv[1:] or ["The capital of France is"] * {rows}
    for tokens in generate(model, tokenizer, prompts, max_new_tokens={new_tokens}):
        print(tokenizer.decode(tokens, skip_special_tokens=True))
"""
