"""Text of the generated program, with places for what a candidate decides."""

from __future__ import annotations

HEAD = '''\
"""Generates with llama.cpp and the settings that were measured."""

import ctypes
import sys

import llama_cpp.llama_cpp as llama_cpp
import numpy as np

MODEL = {model}'''

LOAD = '''\
def load():
    """Model and context, ready to generate. The context holds what was measured: n_ctx tokens."""
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
{model_settings}
{experts}    model = llama_cpp.llama_model_load_from_file(MODEL.encode(), params)
    if not model:
        raise SystemExit(f"llama.cpp cannot load {{MODEL}}")
    params = llama_cpp.llama_context_default_params()
{context_settings}
    context = llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise SystemExit("llama.cpp cannot make the context")
    keep_threads(context, params.n_threads, params.n_threads_batch)
    return model, context'''

EXPERTS_ON_HOST = '''\
class TensorPlace(ctypes.Structure):
    """llama_model_tensor_buft_override"""

    _fields_ = (("pattern", ctypes.c_char_p), ("buffer_type", ctypes.c_void_p))


def experts_on_host(layers={layers}):
    """Leave the experts of the first layers in host memory, as --n-cpu-moe does."""
    host = llama_cpp._lib.ggml_backend_cpu_buffer_type
    host.restype = ctypes.c_void_p
    names = [f"blk\\\\.{{layer}}\\\\.ffn_(up|down|gate|gate_up)_(ch|)exps".encode() for layer in range(layers)]
    return (TensorPlace * (layers + 1))(*(TensorPlace(name, host()) for name in names))'''

TAKE_EXPERTS = """\
    places = experts_on_host()  # must live until the model is loaded
    params.tensor_buft_overrides = ctypes.cast(places, ctypes.c_void_p)
"""

THREADS = '''\
class PoolParams(ctypes.Structure):
    """ggml_threadpool_params"""

    _fields_ = (
        ("cpumask", ctypes.c_bool * 512),
        ("n_threads", ctypes.c_int),
        ("priority", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


def keep_threads(context, threads, threads_batch):
    """Threads that stay from token to token, as llama.cpp's own tools have them."""
    library = ctypes.CDLL(llama_cpp._lib._name)  # the binding declares none of these functions
    new, attach = library.ggml_threadpool_new, library.llama_attach_threadpool
    new.restype, attach.argtypes = ctypes.c_void_p, (ctypes.c_void_p,) * 3

    def pool(count, paused):
        params = PoolParams()
        library.ggml_threadpool_params_init(ctypes.byref(params), count)
        params.poll, params.paused = {poll}, paused
        return new(ctypes.byref(params))

    unlike = threads != threads_batch
    for_prompts = pool(threads_batch, False) if unlike else None
    attach(context, pool(threads, unlike), for_prompts)'''

GENERATE = '''\
def generate(model, context, prompts, max_new_tokens, endless=False):
    """Continue each prompt, a list of token ids, greedily; the ids returned begin with the prompt's. An answer stops at
    a token that ends it; an endless one never chooses such a token."""
    each = llama_cpp.llama_n_ctx_seq(context)
    if len(prompts) > llama_cpp.llama_n_seq_max(context) or max(map(len, prompts)) + max_new_tokens > each:
        raise ValueError("the context is too small for these prompts: raise n_ctx or n_seq_max in load()")
    vocab = llama_cpp.llama_model_get_vocab(model)
    size = llama_cpp.llama_vocab_n_tokens(vocab)
    count = ctypes.c_int32(0)
    found = llama_cpp.llama_vocab_get_suppress_tokens(vocab, ctypes.byref(count))
    never = list(found[: count.value]) if found else []
    ends = {token for token in range(size) if llama_cpp.llama_vocab_is_eog(vocab, token)}
    never += ends if endless else ()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
    rows, going_on = [list(prompt) for prompt in prompts], set(range(len(prompts)))
    # Tokens to feed: id, place in its sequence, sequence, whether the next token is wanted.
    feed = [
        (token, place, row, place == len(ids) - 1) for row, ids in enumerate(rows) for place, token in enumerate(ids)
    ]
    for _ in range(max_new_tokens):
        for row, logits in decoded(context, feed, size):
            logits[never] = -np.inf
            token = int(logits.argmax())
            rows[row].append(token)
            if token in ends:
                going_on.discard(row)
        if not going_on:
            break
        feed = [(rows[row][-1], len(rows[row]) - 1, row, True) for row in sorted(going_on)]
    return rows


def decoded(context, feed, size):
    """Compute tokens, n_batch at once; yields the sequence and the logits of each wanted one."""
    n_batch = llama_cpp.llama_n_batch(context)
    batch = llama_cpp.llama_batch_init(min(n_batch, len(feed)), 0, 1)
    try:
        for begin in range(0, len(feed), n_batch):
            piece = feed[begin : begin + n_batch]
            batch.n_tokens = len(piece)
            for index, (token, place, row, wanted) in enumerate(piece):
                batch.token[index], batch.pos[index], batch.logits[index] = token, place, wanted
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, row
            if llama_cpp.llama_decode(context, batch) != 0:
                raise RuntimeError("llama.cpp cannot compute these tokens")
            for index, (_, _, row, wanted) in enumerate(piece):
                if wanted:
                    yield row, np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, index), (size,))
    finally:
        llama_cpp.llama_batch_free(batch)'''

TEXT = '''\
def tokens_of(model, text):
    """Ids of a prompt."""
    vocab, data = llama_cpp.llama_model_get_vocab(model), text.encode()
    ids = (ctypes.c_int32 * (len(data) + 16))()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), ids, len(ids), True, True)
    return list(ids[:count])


def text_of(model, ids):
    """Text of ids, without special tokens."""
    vocab, tokens = llama_cpp.llama_model_get_vocab(model), (ctypes.c_int32 * len(ids))(*ids)
    buffer = ctypes.create_string_buffer(64 + 64 * len(ids))
    count = llama_cpp.llama_detokenize(vocab, tokens, len(ids), buffer, len(buffer), True, False)
    return buffer.raw[:count].decode(errors="replace")'''

MAIN = '''\
@llama_cpp.llama_log_callback
def tell(level, text, _):
    """Errors alone: llama.cpp says thousands of lines otherwise."""
    if level == 4:  # GGML_LOG_LEVEL_ERROR
        sys.stderr.write(text.decode(errors="replace"))


if __name__ == "__main__":
    llama_cpp.llama_log_set(tell, ctypes.c_void_p(0))
    model, context = load()
    prompts = [tokens_of(model, text) for text in sys.argv[1:] or {prompts}]
    for ids in generate(model, context, prompts, max_new_tokens={new_tokens}):
        print(text_of(model, ids))
'''
