"""Cases of the first GPTs, their relatives and Falcon."""

from __future__ import annotations

from .family_case import GPT, TINY, Case, case

NEO = {
    "vocab_size": 64, "hidden_size": 48, "num_layers": 3, "num_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "attention_types": [[["global", "local"], 1], [["global"], 1]], "window_size": 6,
}  # fmt: skip
FALCON = {k: v for k, v in TINY.items() if k not in ("intermediate_size", "num_key_value_heads")}

CASES: list[Case] = [
    case("openai-gpt", "OpenAIGPTConfig", base=GPT),
    case("openai-gpt silu untied", "OpenAIGPTConfig", base=GPT, afn="silu", tie_word_embeddings=False),
    case("gpt_neo", "GPTNeoConfig", base=NEO),
    case("gpt_neo full", "GPTNeoConfig", base=NEO, attention_types=[[["global"], 3]], intermediate_size=80, activation_function="relu", tie_word_embeddings=False),
    case("biogpt", "BioGptConfig"),
    case("biogpt unscaled", "BioGptConfig", scale_embedding=False, hidden_act="relu", layer_norm_eps=1e-2, tie_word_embeddings=False),
    case("codegen", "CodeGenConfig", base=GPT, rotary_dim=8),
    case("codegen heads", "CodeGenConfig", base=GPT, n_head=8, rotary_dim=6, n_inner=80, tie_word_embeddings=True),
    case("falcon", "FalconConfig", base=FALCON),
    case("falcon heads biases", "FalconConfig", base=FALCON, multi_query=False, bias=True, ffn_hidden_size=80, activation="relu", tie_word_embeddings=False),
    case("falcon serial", "FalconConfig", base=FALCON, parallel_attn=False),
    case("falcon new", "FalconConfig", base=FALCON, new_decoder_architecture=True, num_kv_heads=2, bias=True),
    case("falcon new one norm", "FalconConfig", base=FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1, rope_parameters={"rope_type": "linear", "rope_theta": 1e3, "factor": 2.0}),
    case("falcon new heads", "FalconConfig", base=FALCON, new_decoder_architecture=True),
]  # fmt: skip
