"""The recipe that trains a target, its distilled draft and their tokenizer; see README.md."""
