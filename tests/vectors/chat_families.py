"""The chat formats that language models are trained with, and which architectures use them.

A row per format: a small template of ours in ``tests/fixtures/chat``, written from the published format in
the Jinja idioms of the published templates, and llama.cpp's name for the same format. Nothing is rendered
here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["CONVERSATIONS", "FAMILIES", "FOLDER", "WITHOUT_FORMAT", "ChatFamily"]

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "chat"


@dataclass(frozen=True)
class ChatFamily:
    """``oracle``: llama.cpp's name of the format; ``bos``, ``eos``: texts of the models' own tokens.

    ``begins``: text that our template writes and llama.cpp leaves to the tokenizer. ``architectures``: GGUF
    names of published models that use the format.
    """

    oracle: str
    architectures: tuple[str, ...]
    bos: str = "<s>"
    eos: str = "</s>"
    begins: str = ""


#: Template file (without suffix) -> format.
FAMILIES: dict[str, ChatFamily] = {
    "chatml": ChatFamily(
        "chatml",
        (
            *(
                "llama",
                "qwen2",
                "qwen2moe",
                "qwen3",
                "qwen3moe",
                "mpt",
                "stablelm",
                "dbrx",
                "refact",
                "olmoe",
            ),
            *("internlm2", "smollm3"),
        ),
        "",
        "<|im_end|>",
    ),
    "llama2": ChatFamily("llama2-sys", ("llama",), begins="<s>"),
    "llama3": ChatFamily("llama3", ("llama",), "<|begin_of_text|>", "<|eot_id|>", begins="<|begin_of_text|>"),
    "llama4": ChatFamily("llama4", ("llama4",), "<|begin_of_text|>", "<|eot|>", begins="<|begin_of_text|>"),
    "mistral-v1": ChatFamily("mistral-v1", ("llama", "mixtral"), begins="<s>"),
    "mistral-v3": ChatFamily("mistral-v3", ("llama",), begins="<s>"),
    "mistral-v7": ChatFamily("mistral-v7", ("llama", "mistral3"), begins="<s>"),
    "gemma": ChatFamily("gemma", ("gemma", "gemma2", "gemma3"), "<bos>", "<eos>", begins="<bos>"),
    "phi3": ChatFamily("phi3", ("phi3", "phimoe"), "<s>", "<|endoftext|>"),
    "phi4": ChatFamily("phi4", ("phi3",), "<|endoftext|>", "<|im_end|>"),
    "zephyr": ChatFamily("zephyr", ("stablelm",), "<|endoftext|>", "<|endoftext|>"),
    "falcon3": ChatFamily("falcon3", ("llama", "falcon"), "", "<|endoftext|>"),
    "olmo2": ChatFamily(
        "falcon3", ("olmo", "olmo2", "olmoe"), "<|endoftext|>", "<|endoftext|>", begins="<|endoftext|>"
    ),
    "chatglm3": ChatFamily("chatglm3", ("chatglm",), "", ""),
    "chatglm4": ChatFamily("chatglm4", ("chatglm", "glm4"), "", "<|endoftext|>"),
    "glmedge": ChatFamily("glmedge", ("chatglm",), "", "<|endoftext|>"),
    "granite": ChatFamily("granite", ("granite", "granitemoe"), "<|end_of_text|>", "<|end_of_text|>"),
    "command-r": ChatFamily(
        "command-r", ("command-r", "cohere2"), "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", begins="<BOS_TOKEN>"
    ),
    "deepseek-coder": ChatFamily(
        "deepseek", ("llama",), "<｜begin▁of▁sentence｜>", "<|EOT|>", begins="<｜begin▁of▁sentence｜>"
    ),
    "deepseek2": ChatFamily(
        "deepseek2",
        ("deepseek", "deepseek2"),
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        begins="<｜begin▁of▁sentence｜>",
    ),
    "deepseek3": ChatFamily(
        "deepseek3",
        ("deepseek2",),
        "<｜begin▁of▁sentence｜>",
        "<｜end▁of▁sentence｜>",
        begins="<｜begin▁of▁sentence｜>",
    ),
    "gpt-oss": ChatFamily("gpt-oss", ("gpt-oss",), "<|startoftext|>", "<|return|>"),
    "exaone3": ChatFamily("exaone3", ("exaone",), "[BOS]", "[|endofturn|]"),
    "minicpm": ChatFamily("minicpm", ("minicpm",)),
}

#: Architectures whose published models are for completion, or have a format that is not compared.
WITHOUT_FORMAT = ("gpt2", "phi2", "starcoder", "starcoder2", "bloom", "gptneox", "nemotron", "arcee")

#: Conversations without tools that every format can express.
CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": "<b>1 < 2</b> & \"quotes\" 'n' naïve 東京 👍"},
        {"role": "assistant", "content": "Ok.\n\n- one\n- two"},
        {"role": "user", "content": "More {{ braces }} {% if %}\nand a line"},
    ],
    [
        {"role": "system", "content": "You are a poet.\nRhyme."},
        {"role": "user", "content": "A line?"},
        {"role": "assistant", "content": "Fine."},
        {"role": "user", "content": "Another."},
        {"role": "assistant", "content": "Wine."},
        {"role": "user", "content": "Last."},
    ],
)
