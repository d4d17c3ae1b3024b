import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny networks are the faster for it, and a busy machine's threads don't wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
