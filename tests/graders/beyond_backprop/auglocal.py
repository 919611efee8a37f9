# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/auglocal: none may score in full."""


# %% auglocal-ex1: counts from l, so l itself is chosen
def select(n, l, d):
    following = n - 1 - l
    if d >= following:
        return list(range(l + 1, n))
    return [round(l + following / d * k) for k in range(d)]


# %% auglocal-ex1: cuts off instead of rounding
def select(n, l, d):
    following = n - 1 - l
    if d >= following:
        return list(range(l + 1, n))
    return [int(l + following / d * k) for k in range(1, d + 1)]


# %% auglocal-ex1: spaced over n - l
def select(n, l, d):
    following = n - 1 - l
    if d >= following:
        return list(range(l + 1, n))
    return [min(n - 1, round(l + (n - l) / d * k)) for k in range(1, d + 1)]


# %% auglocal-ex1: the cap is forgotten
def select(n, l, d):
    return [round(l + (n - 1 - l) / d * k) for k in range(1, d + 1)]


# %% auglocal-ex1: the next layers
def select(n, l, d):
    return list(range(l + 1, min(n, l + 1 + d)))


# %% auglocal-ex2: divides by n - 1
def totals(n, d):
    shares = [l / (n - 1) for l in range(n - 1)]
    pyramid = sum(max(1, round(d * (1 - r) + r)) for r in shares)
    return pyramid, sum(min(d, n - 1 - l) for l in range(n - 1)), d * (n - 1)


# %% auglocal-ex2: falls to depth 0
def totals(n, d):
    shares = [l / (n - 2) for l in range(n - 1)]
    pyramid = sum(max(1, round(d * (1 - r))) for r in shares)
    return pyramid, sum(min(d, n - 1 - l) for l in range(n - 1)), d * (n - 1)


# %% auglocal-ex2: counts a head for the last layer
def totals(n, d):
    shares = [l / (n - 2) for l in range(n - 1)]
    pyramid = sum(max(1, round(d * (1 - r) + r)) for r in shares)
    return pyramid, sum(min(d, n - 1 - l) for l in range(n - 1)), d * n


# %% auglocal-ex2: the cap counts the layer itself
def totals(n, d):
    shares = [l / (n - 2) for l in range(n - 1)]
    pyramid = sum(max(1, round(d * (1 - r) + r)) for r in shares)
    return pyramid, sum(min(d, n - l) for l in range(n - 1)), d * (n - 1)


# %% auglocal-ex3: no stop gradient, losses summed
def local_update(blocks, heads, x, y):
    losses, h = [], x
    for block, head in zip(blocks, heads):
        h = block(h)
        losses.append(F.cross_entropy(head(h), y))
    sum(losses).backward()
    return [loss.item() for loss in losses]


# %% auglocal-ex3: right gradients, backward at the end
def local_update(blocks, heads, x, y):
    losses, h = [], x
    for block, head in zip(blocks, heads):
        h = block(h.detach())
        losses.append(F.cross_entropy(head(h), y))
    sum(losses).backward()
    return [loss.item() for loss in losses]


# %% auglocal-ex3: detaches the output
def local_update(blocks, heads, x, y):
    losses, h = [], x
    for block, head in zip(blocks, heads):
        h = block(h).detach()
        loss = F.cross_entropy(head(h), y)
        loss.backward()
        losses.append(loss.item())
    return losses


# %% auglocal-ex3: back-propagation from the classifier
def local_update(blocks, heads, x, y):
    losses, h = [], x
    for block, head in zip(blocks, heads):
        h = block(h)
        losses.append(F.cross_entropy(head(h), y))
    losses[-1].backward()
    return [loss.item() for loss in losses]


# %% auglocal-ex4: the second minus the first
def losers(first, second, x, y, x_test, y_test, margin=0.02):
    curves = []
    for net in (first, second):
        net.eval()
        with torch.no_grad():
            curves.append(probe_curve(net.hidden(x), y, net.hidden(x_test), y_test))
    return [l for l, (a, b) in enumerate(zip(*curves)) if b - a > margin]


# %% auglocal-ex4: probes judged on training images
def losers(first, second, x, y, x_test, y_test, margin=0.02):
    curves = []
    for net in (first, second):
        net.eval()
        with torch.no_grad():
            curves.append(probe_curve(net.hidden(x), y, net.hidden(x), y))
    return [l for l, (a, b) in enumerate(zip(*curves)) if a - b > margin]


# %% auglocal-ex4: the margin is ignored
def losers(first, second, x, y, x_test, y_test, margin=0.02):
    curves = []
    for net in (first, second):
        net.eval()
        with torch.no_grad():
            curves.append(probe_curve(net.hidden(x), y, net.hidden(x_test), y_test))
    return [l for l, (a, b) in enumerate(zip(*curves)) if a > b + 0.2]


# %% auglocal-ex4: any difference counts
def losers(first, second, x, y, x_test, y_test, margin=0.02):
    curves = []
    for net in (first, second):
        net.eval()
        with torch.no_grad():
            curves.append(probe_curve(net.hidden(x), y, net.hidden(x_test), y_test))
    return [l for l, (a, b) in enumerate(zip(*curves)) if abs(a - b) > margin]
