"""How the embedded model is made, from nothing: tokenizer, data, model, training, export. Not part of the wheel."""
