"""Texts and where they come from: records, public sets, the chat template, mixes, the sample pool and packing."""
