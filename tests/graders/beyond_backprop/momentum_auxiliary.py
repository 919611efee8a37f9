# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/momentum_auxiliary: none may score in full."""


# %% momentum_auxiliary-ex1: the weights of old and new swapped
def update(average, layer, m):
    with torch.no_grad():
        for a, p in zip(average.parameters(), layer.parameters()):
            a.mul_(1 - m).add_(p, alpha=m)


# %% momentum_auxiliary-ex1: changes the layer
def update(average, layer, m):
    with torch.no_grad():
        for a, p in zip(average.parameters(), layer.parameters()):
            p.mul_(1 - m).add_(a, alpha=m)


# %% momentum_auxiliary-ex1: copies
def update(average, layer, m):
    average.load_state_dict(layer.state_dict())


# %% momentum_auxiliary-ex1: averages the running averages too
def update(average, layer, m):
    with torch.no_grad():
        theirs = layer.state_dict()
        for key, a in average.state_dict().items():
            if a.is_floating_point():
                a.mul_(m).add_(theirs[key], alpha=1 - m)


# %% momentum_auxiliary-ex1: replaces storage
def update(average, layer, m):
    for a, p in zip(average.parameters(), layer.parameters()):
        a.data = m * a.data + (1 - m) * p.data


# %% momentum_auxiliary-ex1: nothing happens to the module
def update(average, layer, m):
    for a, p in zip(average.parameters(), layer.parameters()):
        a = m * a + (1 - m) * p


# %% momentum_auxiliary-ex2: rounds down
def updates_to_half(m):
    return int(math.log(0.5) / math.log(m))


def momentum_for(share, updates):
    return share ** (1 / updates)


# %% momentum_auxiliary-ex2: the rule of thumb 1 / (1 - m)
def updates_to_half(m):
    return math.ceil(1 / (1 - m))


def momentum_for(share, updates):
    return share ** (1 / updates)


# %% momentum_auxiliary-ex2: not an integer
def updates_to_half(m):
    return math.log(0.5) / math.log(m)


def momentum_for(share, updates):
    return share ** (1 / updates)


# %% momentum_auxiliary-ex2: linear in the share
def updates_to_half(m):
    return math.ceil(math.log(0.5) / math.log(m))


def momentum_for(share, updates):
    return 1 - (1 - share) / updates


# %% momentum_auxiliary-ex3: no stop gradient
def local_update(blocks, heads, x, y):
    h = x
    losses = []
    for block, head in zip(blocks, heads):
        h = block(h)
        losses.append(F.cross_entropy(head(h), y))
    sum(losses).backward()
    for i in range(len(blocks) - 1):
        heads[i][0].update(blocks[i + 1][0])


# %% momentum_auxiliary-ex3: averages never move
def local_update(blocks, heads, x, y):
    h = x
    for block, head in zip(blocks, heads):
        h = block(h.detach())
        F.cross_entropy(head(h), y).backward()


# %% momentum_auxiliary-ex3: the average moves before its loss
def local_update(blocks, heads, x, y):
    h = x
    for i, (block, head) in enumerate(zip(blocks, heads)):
        if i + 1 < len(blocks):
            head[0].update(blocks[i + 1][0])
        h = block(h.detach())
        F.cross_entropy(head(h), y).backward()


# %% momentum_auxiliary-ex3: the average follows the last layer of the block
def local_update(blocks, heads, x, y):
    h = x
    for i, (block, head) in enumerate(zip(blocks, heads)):
        h = block(h.detach())
        F.cross_entropy(head(h), y).backward()
        if i + 1 < len(blocks):
            head[0].average.load_state_dict(head[0].average.state_dict())
            with torch.no_grad():
                for a, p in zip(head[0].average.parameters(), blocks[i][0].parameters()):
                    if a.shape == p.shape:
                        a.lerp_(p, 0.5)


# %% momentum_auxiliary-ex3: steps an optimizer, and only then averages
def local_update(blocks, heads, x, y):
    h = x
    for block, head in zip(blocks, heads):
        h = block(h.detach())
        F.cross_entropy(head(h), y).backward()
    with torch.no_grad():
        for block in blocks:
            for p in block.parameters():
                p -= 0.1 * p.grad
    for i in range(len(blocks) - 1):
        heads[i][0].update(blocks[i + 1][0])


# %% momentum_auxiliary-ex4: EMA and LB mixed up
def four_rows(widths, batches, x_test, y_test, seed):
    out = {}
    for name in ("plain", "EMA", "LB", "MAN"):
        trainer = mlp_trainer(
            widths, seed=seed, learnable_bias=name in ("EMA", "MAN"), use_ema=name in ("LB", "MAN")
        )
        for x, y in batches:
            trainer.step(x, y)
        out[name] = (trainer.predict(x_test).argmax(1) == y_test).double().mean().item()
    return out


# %% momentum_auxiliary-ex4: the same trainer in every row
def four_rows(widths, batches, x_test, y_test, seed):
    out = {}
    trainer = mlp_trainer(widths, seed=seed)
    for name in ("plain", "EMA", "LB", "MAN"):
        for x, y in batches:
            trainer.step(x, y)
        out[name] = (trainer.predict(x_test).argmax(1) == y_test).double().mean().item()
    return out


# %% momentum_auxiliary-ex4: accuracy on the training images
def four_rows(widths, batches, x_test, y_test, seed):
    out = {}
    for name in ("plain", "EMA", "LB", "MAN"):
        trainer = mlp_trainer(
            widths, seed=seed, learnable_bias=name in ("LB", "MAN"), use_ema=name in ("EMA", "MAN")
        )
        for x, y in batches:
            trainer.step(x, y)
        x, y = (torch.cat(parts) for parts in zip(*batches))
        out[name] = (trainer.predict(x).argmax(1) == y).double().mean().item()
    return out


# %% momentum_auxiliary-ex4: one batch only
def four_rows(widths, batches, x_test, y_test, seed):
    out = {}
    for name in ("plain", "EMA", "LB", "MAN"):
        trainer = mlp_trainer(
            widths, seed=seed, learnable_bias=name in ("LB", "MAN"), use_ema=name in ("EMA", "MAN")
        )
        trainer.step(*batches[0])
        out[name] = (trainer.predict(x_test).argmax(1) == y_test).double().mean().item()
    return out
