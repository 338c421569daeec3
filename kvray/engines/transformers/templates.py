"""Text of the generated program, with places for what a candidate decides."""

from __future__ import annotations

LOAD = '''\
def load():
    """Model and tokenizer, ready to generate."""
{tokenizer}
    model = {auto_class}.from_pretrained(
{options}
    )
    model.generation_config = one_greedy_sequence(model.generation_config)
    return model, tokenizer'''

CHECK_RANKS = """\
    if os.environ.get("WORLD_SIZE", "1") != str(RANKS):
        raise SystemExit(f"Start this with: torchrun --standalone --nproc-per-node {RANKS} {sys.argv[0]}")
"""

DENSE_GGUF = """\
try:
    from transformers import GgufConfig

    # Transformers may keep the weights packed where it has kernels for them. Unpacked ones were measured, from a copy
    # that was converted before; unpacking them here takes longer at each start.
    DENSE = {"quantization_config": GgufConfig(dequantize=True)}
except ImportError:  # an older Transformers, which always unpacks them
    DENSE = {}\
"""
SAFETENSORS = """
        use_safetensors=True,"""

MAYBE_PICKLED = """
        # Pickle files are loaded where there are no safetensors, as measured: trust those who made the weights."""

LOAD_RANDOM = '''\
def load():
    """Model and tokenizer. The weights are random, for the architecture was measured: load your own model instead."""
{registered}{checked}    config = AutoConfig.from_pretrained({config})
    torch.manual_seed({seed})
    with torch.device(DEVICE):
        model = {auto_class}.from_config(
{options}
        )
{spread}    model.generation_config = one_greedy_sequence(model.generation_config)
    vocabulary = config.get_text_config(decoder=True).vocab_size
{tokenizer}
    return model.eval(), tokenizer'''

SPREAD_RANDOM = """\
    with tempfile.TemporaryDirectory() as folder:  # only weights that are read from files can be spread
        config.save_pretrained(folder)
        save_model(model, f"{{folder}}/model.safetensors", metadata={{"format": "pt"}})
        model = {auto_class}.from_pretrained(
{options}
        )
"""

OTHER_VOCABULARY = """\
    if len(tokenizer) > vocabulary:
        tokenizer = Bytes(vocabulary)"""

LEFT_PADDING = """\
    tokenizer.padding_side = "left"
    # What is padded with does not matter: it is masked.
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)"""

BYTES = '''\
class Bytes:
    """Stands in where the folder has no tokenizer, or one that writes ids which this model does not know: bytes of text
    as token ids."""

    def __init__(self, vocabulary):
        self.vocabulary = vocabulary

    def __call__(self, text, return_tensors="pt", return_attention_mask=True, padding=True):
        texts = [text] if isinstance(text, str) else text
        rows = [[byte % self.vocabulary for byte in one.encode()] for one in texts]
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def decode(self, tokens, skip_special_tokens=True):
        return " ".join(map(str, tokens.tolist()))'''

KEPT_CACHE = '''\
@functools.lru_cache(maxsize=1)
def kept_cache(model, rows, tokens):
    """The same cache for all calls of a size, which are made one after the other: as measured, it is emptied and used
    again, and what was compiled for its tensors serves all of them."""
    return {cache}'''

GENERATE = '''\
def generate(model, tokenizer, prompt, max_new_tokens):
    """Continue the prompt greedily; the tokens returned begin with the prompt's."""
    inputs = tokenizer(prompt, return_tensors="pt", return_attention_mask=True).to(model.device)'''

GENERATE_BATCH = '''\
def generate(model, tokenizer, prompts, max_new_tokens):
    """Continue each prompt greedily; the tokens returned begin with the prompt's, padded on the left."""
    inputs = tokenizer(prompts, return_tensors="pt", return_attention_mask=True, padding=True).to(model.device)'''

TAKE_KEPT_CACHE = """\
    needed = {length}
    tokens = next((length for length in CACHE_TOKENS if length >= needed), -(-needed // {step}) * {step})
    cache = kept_cache(model, inputs["input_ids"].shape[0], tokens)
    cache.reset()"""

NO_PADDING = """\
    if not inputs["attention_mask"].all():
        raise ValueError("this cache keeps the first tokens, which would be padding: give prompts of equal length")"""

GENERATE_PAGED = '''\
def generate(model, tokenizer, {prompts}, max_new_tokens):
    """Continue {doc} greedily; the tokens returned begin with the prompt's."""
    rows = [tokenizer(one)["input_ids"] for one in {listed}]
    settings = copy.deepcopy(model.generation_config)
    settings.update(
{options}
    )
    if settings.eos_token_id is None:
        settings.eos_token_id = -1  # continuous batching wants one
    with model.continuous_batching_context_manager(
        generation_config=settings,
        continuous_batching_config=paging(len(rows), max(map(len, rows)), max_new_tokens),
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
{shown}    print(tokenizer.decode(tokens[0], skip_special_tokens=True))
"""

MAIN_BATCH = """\
if __name__ == "__main__":
    model, tokenizer = load()
    prompts = sys.argv[1:] or ["The capital of France is"] * {rows}
    rows = generate(model, tokenizer, prompts, max_new_tokens={new_tokens})
{shown}    for tokens in rows:
        print(tokenizer.decode(tokens, skip_special_tokens=True))
"""

FIRST_RANK_SHOWS = """\
    torch.distributed.destroy_process_group()
    if os.environ["RANK"] != "0":
        sys.exit()  # all ranks have the same text
"""
