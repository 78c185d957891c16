"""Every other layer of an encoder, from the second on, as an encoder of its own: a student's body without a teacher.

Usage: python docs/results/every_other_layer.py ENCODER OUTPUT
"""

import sys

import torch
from transformers import AutoModel, AutoTokenizer

source, output = sys.argv[1:]
model = AutoModel.from_pretrained(source, dtype=torch.float32)
model.encoder.layer = torch.nn.ModuleList(model.encoder.layer[1::2])
model.config.num_hidden_layers = len(model.encoder.layer)
model.save_pretrained(output)
AutoTokenizer.from_pretrained(source).save_pretrained(output)
