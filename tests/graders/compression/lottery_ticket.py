# ruff: noqa
"""Wrong answers to the exercises of compression/lottery_ticket: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% lottery_ticket-ex1: signed values instead of magnitudes
def prune(w, mask, rate):
    places = mask.flatten().nonzero()[:, 0]
    order = w.flatten()[places].sort(descending=True, stable=True).indices
    keep = torch.zeros(w.numel(), dtype=torch.bool)
    keep[places[order[: len(places) - round(rate * len(places))]]] = True
    return keep.view(w.shape)


# %% lottery_ticket-ex1: the share of all weights, not of the survivors
def prune(w, mask, rate):
    places = mask.flatten().nonzero()[:, 0]
    order = w.flatten()[places].abs().sort(descending=True, stable=True).indices
    keep = torch.zeros(w.numel(), dtype=torch.bool)
    keep[places[order[: len(places) - round(rate * w.numel())]]] = True
    return keep.view(w.shape)


# %% lottery_ticket-ex1: pruned weights are ranked as zeros
def prune(w, mask, rate):
    order = (w * mask).flatten().abs().sort(stable=True).indices
    keep = mask.flatten().clone()
    keep[order[: round(rate * int(mask.sum()))]] = False
    return keep.view(w.shape)


# %% lottery_ticket-ex1: forgets what was pruned before
def prune(w, mask, rate):
    order = w.flatten().abs().sort(descending=True, stable=True).indices
    keep = torch.zeros(w.numel(), dtype=torch.bool)
    keep[order[: int(mask.sum()) - round(rate * int(mask.sum()))]] = True
    return keep.view(w.shape)


# %% lottery_ticket-ex1: of equal magnitudes the middle ones go
def prune(w, mask, rate):
    edge = w[mask].abs().sort().values[round(rate * int(mask.sum()))]
    return mask & (w.abs() >= edge)


# %% lottery_ticket-ex1: of equal magnitudes the other one stays
def prune(w, mask, rate):
    places = mask.flatten().nonzero()[:, 0]
    order = w.flatten()[places].abs().sort(stable=True).indices
    keep = torch.zeros(w.numel(), dtype=torch.bool)
    keep[places[order[round(rate * len(places)) :]]] = True
    return keep.view(w.shape)


# %% lottery_ticket-ex1: keeps the smallest
def prune(w, mask, rate):
    places = mask.flatten().nonzero()[:, 0]
    order = w.flatten()[places].abs().sort(stable=True).indices
    keep = torch.zeros(w.numel(), dtype=torch.bool)
    keep[places[order[: len(places) - round(rate * len(places))]]] = True
    return keep.view(w.shape)


# %% lottery_ticket-ex1: rounds down
def prune(w, mask, rate):
    places = mask.flatten().nonzero()[:, 0]
    order = w.flatten()[places].abs().sort(descending=True, stable=True).indices
    keep = torch.zeros(w.numel(), dtype=torch.bool)
    keep[places[order[: len(places) - int(rate * len(places))]]] = True
    return keep.view(w.shape)


# %% lottery_ticket-ex2: one rate for all layers
share_left = (1 - p) ** rounds
rounds_below_5_percent = next(n for n in range(100) if (1 - p) ** n < 0.05)

# %% lottery_ticket-ex2: each round removes a share of the beginning
share_left = 1 - p * rounds
rounds_below_5_percent = next(n for n in range(100) if 1 - p * n < 0.05)

# %% lottery_ticket-ex2: a percentage
share_left = (265_000 * (1 - p) ** rounds + 1000 * (1 - p / 2) ** rounds) / 2662
rounds_below_5_percent = 14

# %% lottery_ticket-ex2: the mean of the layers' shares
share_left = (2 * (1 - p) ** rounds + (1 - p / 2) ** rounds) / 3
rounds_below_5_percent = 14

# %% lottery_ticket-ex2: one round too many
share_left = (265_200 * (1 - p) ** rounds + 1000 * (1 - p / 2) ** rounds) / 266_200
rounds_below_5_percent = 15

# %% lottery_ticket-ex2: one round too few
share_left = (265_200 * (1 - p) ** rounds + 1000 * (1 - p / 2) ** rounds) / 266_200
rounds_below_5_percent = 13

# %% lottery_ticket-ex2: no number of rounds
share_left = (265_200 * (1 - p) ** rounds + 1000 * (1 - p / 2) ** rounds) / 266_200


# %% lottery_ticket-ex3: the other half
prediction = "weights"


def shuffle(mask, gen):
    return mask.flatten()[torch.randperm(mask.numel(), generator=gen)].view(mask.shape)


# %% lottery_ticket-ex3: shuffles the rows
prediction = "mask"


def shuffle(mask, gen):
    return mask[torch.randperm(len(mask), generator=gen)]


# %% lottery_ticket-ex3: shuffles rows and columns
prediction = "mask"


def shuffle(mask, gen):
    rows = torch.randperm(mask.shape[0], generator=gen)
    return mask[rows][:, torch.randperm(mask.shape[1], generator=gen)]


# %% lottery_ticket-ex3: keeps about as many
prediction = "mask"


def shuffle(mask, gen):
    return torch.rand(mask.shape, generator=gen) < mask.float().mean()


# %% lottery_ticket-ex3: does not use the generator
prediction = "mask"


def shuffle(mask, gen):
    return mask.flatten()[torch.randperm(mask.numel())].view(mask.shape)


# %% lottery_ticket-ex3: leaves the mask as it is
prediction = "mask"


def shuffle(mask, gen):
    return mask


# %% lottery_ticket-ex3: always the same places
prediction = "mask"


def shuffle(mask, gen):
    return mask.flatten()[torch.randperm(mask.numel(), generator=gen.manual_seed(0))].view(
        mask.shape
    )


# %% lottery_ticket-ex3: no prediction
def shuffle(mask, gen):
    return mask.flatten()[torch.randperm(mask.numel(), generator=gen)].view(mask.shape)
