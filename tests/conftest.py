"""One thread a process in every test."""

import torch

torch.set_num_threads(1)
