"""The parts of `pitune pretrain`."""
