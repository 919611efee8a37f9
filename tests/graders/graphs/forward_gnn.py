# ruff: noqa
"""Wrong answers to the exercises of graphs/forward_gnn: none may score in full."""


# %% forward_gnn-ex1: signs swapped
def my_ff_loss(pos, neg, theta):
    s = torch.nn.functional.softplus
    return s(pos - theta).mean() + s(theta - neg).mean()


# %% forward_gnn-ex1: a sum in place of the mean
def my_ff_loss(pos, neg, theta):
    s = torch.nn.functional.softplus
    return s(theta - pos).sum() + s(neg - theta).sum()


# %% forward_gnn-ex1: overflows
def my_ff_loss(pos, neg, theta):
    return torch.log1p((theta - pos).exp()).mean() + torch.log1p((neg - theta).exp()).mean()


# %% forward_gnn-ex1: one mean over everything
def my_ff_loss(pos, neg, theta):
    s = torch.nn.functional.softplus
    return torch.cat([s(theta - pos)[None], s(neg - theta)]).mean()


# %% forward_gnn-ex1: no threshold
def my_ff_loss(pos, neg, theta):
    s = torch.nn.functional.softplus
    return s(-pos).mean() + s(neg).mean()


# %% forward_gnn-ex2: one pass for all
def layer_calls(mode, layers, classes):
    return layers


# %% forward_gnn-ex2: one class too few
def layer_calls(mode, layers, classes):
    if mode.startswith("ff"):
        return (classes - 1) * layers
    return 11 * layers if mode == "sf_top2input" else layers


# %% forward_gnn-ex2: the first pass forgotten
def layer_calls(mode, layers, classes):
    if mode.startswith("ff"):
        return classes * layers
    return 10 * layers if mode == "sf_top2input" else layers


# %% forward_gnn-ex2: classes added
def layer_calls(mode, layers, classes):
    if mode.startswith("ff"):
        return classes + layers
    return 11 * layers if mode == "sf_top2input" else layers


# %% forward_gnn-ex3: no normalization
def sf_layer(x, A_hat, weight, C):
    h = torch.relu(A_hat @ x @ weight.T)
    return h, h[:-C] @ h[-C:].T


# %% forward_gnn-ex3: normalization on the way out
def sf_layer(x, A_hat, weight, C):
    x = torch.nn.functional.normalize(x, dim=1)
    h = torch.nn.functional.normalize(torch.relu(A_hat @ x @ weight.T), dim=1)
    return h, h[:-C] @ h[-C:].T


# %% forward_gnn-ex3: columns normalized
def sf_layer(x, A_hat, weight, C):
    x = torch.nn.functional.normalize(x, dim=0)
    h = torch.relu(A_hat @ x @ weight.T)
    return h, h[:-C] @ h[-C:].T


# %% forward_gnn-ex3: no relu
def sf_layer(x, A_hat, weight, C):
    x = torch.nn.functional.normalize(x, dim=1)
    h = A_hat @ x @ weight.T
    return h, h[:-C] @ h[-C:].T


# %% forward_gnn-ex3: neighbors forgotten
def sf_layer(x, A_hat, weight, C):
    x = torch.nn.functional.normalize(x, dim=1)
    h = torch.relu(x @ weight.T)
    return h, h[:-C] @ h[-C:].T


# %% forward_gnn-ex3: logits of the class nodes too
def sf_layer(x, A_hat, weight, C):
    x = torch.nn.functional.normalize(x, dim=1)
    h = torch.relu(A_hat @ x @ weight.T)
    return h, h @ h[-C:].T


# %% forward_gnn-ex4: smaller
def predictions():
    return "smaller", False, True


# %% forward_gnn-ex4: both learn
def predictions():
    return "larger", True, True


# %% forward_gnn-ex4: neither learns
def predictions():
    return "larger", False, False


# %% forward_gnn-ex4: the other way round
def predictions():
    return "larger", True, False


# %% forward_gnn-ex4: a dictionary
def predictions():
    return {"goodness": "larger"}
