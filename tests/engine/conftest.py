"""One thread: tiny tensors gain nothing from two, and lose much where something else uses the other core."""

import torch

torch.set_num_threads(1)
