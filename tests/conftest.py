"""One thread for every test: the tensors are small, and threads would only wait for each other."""

import torch

torch.set_num_threads(1)
