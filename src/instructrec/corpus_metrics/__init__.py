"""Corpus metrics as modules of the Hugging Face library ``evaluate``, for use without its hub.

``evaluate.load`` takes the path of each file here; ``instructrec.rewards.hf_metric`` knows them by
name. Importing one of them imports ``evaluate``, and with it torch.
"""
