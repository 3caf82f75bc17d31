"""Tiny tokenizers, put into a GGUF file's metadata as llama.cpp's converter would."""

import json

from gguf import TokenType
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

TEXT = """A small model that learns a small thing in a small memory is a good model to test with.
The lake is wide, the boat is small, and the wind that moves the boat is the wind that moves the lake."""
SPECIAL = "<|endoftext|>"
PIECES = ["he", "\u2581t", "\u2581the", "\u2581s", "at", "all", "ll", "\u2581sm", "\u2581small", "\u2581"]


def add_bpe(writer, vocabulary_size, pre):
    """Byte-level BPE (GPT-2's): 256 bytes, the merges that TEXT gives, one end token; unused entries fill the rest."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=299, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), min_frequency=2
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.token_to_id)
    kinds = [TokenType.NORMAL] * len(tokens)
    end = len(tokens)
    tokens.append(SPECIAL)
    kinds.append(TokenType.CONTROL)
    while len(tokens) < vocabulary_size:
        tokens.append(f"[PAD{len(tokens)}]")
        kinds.append(TokenType.UNUSED)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)


def add_spm(writer, vocabulary_size):
    """SentencePiece's kind, as gemma3 has it: four control tokens, 256 bytes, then pieces by falling score."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    kinds = [TokenType.CONTROL] * 3 + [TokenType.UNKNOWN] + [TokenType.BYTE] * 256
    scores = [-1000.0] * 260
    pieces = [*PIECES, *"abdeghilmnorstw.,AT"]
    pieces += [f"<unused{n}>" for n in range(vocabulary_size - len(tokens) - len(pieces))]
    for rank, piece in enumerate(pieces):
        tokens.append(piece)
        kinds.append(TokenType.UNUSED if piece.startswith("<unused") else TokenType.NORMAL)
        scores.append(-float(rank))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_bos_token_id(2)
    writer.add_eos_token_id(1)
    writer.add_unk_token_id(3)
    writer.add_pad_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_sep_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
