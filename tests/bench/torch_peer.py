"""The same work in plain PyTorch, to be timed beside ours: `dlm bench --also tests/bench/torch_peer.py` (needs torch).

A masked-diffusion training step (MDLM: a mask rate a row, loss on masked positions, all logits, AdamW and an average
of the weights) and its ancestral sampler (all rows of the head at every step), with the layers, widths and batches of
the reference shapes. PyTorch runs in a process of its own, with the memory allocator and threads that its users have.
"""

import dataclasses
import functools
import math
import subprocess
import sys

import torch
from torch import nn
from torch.nn import functional

from dlm_jax.bench import works
from dlm_jax.bench.timing import Work


class Block(nn.Module):
    """Pre-norm attention with RoPE, and SwiGLU."""

    def __init__(self, config):
        super().__init__()
        d, f = config.embed_dim, config.hidden_dim
        self.heads = config.num_heads
        self.norm, self.mlp_norm = nn.RMSNorm(d), nn.RMSNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d, bias=False), nn.Linear(d, d, bias=False)
        self.gate, self.up = nn.Linear(d, f, bias=False), nn.Linear(d, f, bias=False)
        self.down = nn.Linear(f, d, bias=False)

    def forward(self, x, cos, sin):
        batch, length, width = x.shape
        parts = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = (_rotate(part, cos, sin) for part in parts[:2])
        mixed = functional.scaled_dot_product_attention(q, k, parts[2])
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        normed = self.mlp_norm(x)
        return x + self.down(functional.silu(self.gate(normed)) * self.up(normed))


def _rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class Network(nn.Module):
    """Embedding with a mask token, blocks, norm and an untied head."""

    def __init__(self, config, vocab_size, length):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size + 1, config.embed_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm, self.head = nn.RMSNorm(config.embed_dim), nn.Linear(config.embed_dim, vocab_size, bias=False)
        half = config.head_dim // 2
        angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, tokens):
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def train(shape):
    """Returns the Work of one training step."""
    length, batch, mask = shape.config.data.length, shape.config.train.batch_size, shape.vocab_size
    torch.manual_seed(0)
    network = Network(shape.config.model, shape.vocab_size, length)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-4)
    average = [parameter.detach().clone() for parameter in network.parameters()]
    x0 = torch.randint(0, shape.vocab_size, (batch, length))

    def run():
        t = (torch.rand(1) + torch.arange(batch) / batch) % 1 * (1 - 1e-3) + 1e-3
        is_masked = torch.rand(batch, length) < t[:, None]
        logits = network(torch.where(is_masked, mask, x0))
        losses = functional.cross_entropy(logits.view(-1, shape.vocab_size), x0.view(-1), reduction="none")
        loss = (losses.view(batch, length) * is_masked / t[:, None]).sum() / x0.numel()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        torch._foreach_lerp_(average, [parameter.detach() for parameter in network.parameters()], 1e-4)
        assert math.isfinite(loss.item())

    return Work(f"train/{shape.name} torch", run, batch * length, works.train_flops(shape))


def sample(shape):
    """Returns the Work of one batch of ancestral samples in T steps."""
    length, batch, mask = shape.config.data.length, shape.config.train.batch_size, shape.vocab_size
    torch.manual_seed(0)
    network = Network(shape.config.model, shape.vocab_size, length)

    @torch.no_grad()
    def run():
        xt = torch.full((batch, length), mask)
        for step in range(shape.num_steps):
            t, s = 1 - step / shape.num_steps, 1 - (step + 1) / shape.num_steps
            p = network(xt).double().softmax(dim=-1)
            drawn = (p / torch.empty_like(p).exponential_()).argmax(dim=-1)
            reveal = (xt == mask) & (torch.rand(batch, length) < (t - s) / t)
            xt = torch.where(reveal, drawn, xt)

    return Work(f"sample/{shape.name} torch", run, batch * length, works.sample_flops(shape))


def works_beside():
    """Returns the Works that `dlm bench --also` adds; each asks the other process to run and waits for its answer."""
    peer = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(name):
        print(name, file=peer.stdin, flush=True)
        if peer.stdout.readline().strip() != name:
            raise RuntimeError(f"{name}: the PyTorch process ended")

    return [
        dataclasses.replace(work, run=functools.partial(ask, work.name))
        for work in (make(shape) for shape in works.reference_shapes() for make in (train, sample))
    ]


def _serve():
    """Runs the works whose names come in, a line each, until there are no more."""
    known = {
        work.name: work for shape in works.reference_shapes() for make in (train, sample) for work in [make(shape)]
    }
    for line in sys.stdin:
        known[line.strip()].run()
        print(line.strip(), flush=True)


if __name__ == "__main__":
    _serve()
