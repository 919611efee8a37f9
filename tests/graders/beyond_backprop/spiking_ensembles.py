# ruff: noqa
"""Wrong answers to the exercises of beyond_backprop/spiking_ensembles: none may score in full.

Each block stands below the untouched answer cell, so the cell's imports are there. Its head says
which exercise it answers and what is wrong with it.
"""


# %% spiking_ensembles-ex1: totals instead of means
def assign_and_score(counts, labels, places, new, mask):
    totals = torch.stack([counts[labels == p].sum(0) for p in range(places)])
    place = torch.where(totals.max(0).values > 0, totals.argmax(0), -1)
    scores = torch.zeros(len(new), places)
    for p in range(places):
        own = place == p
        if own.any():
            scores[:, p] = (new * mask)[:, own].sum(1) / own.sum()
    return place, scores


# %% spiking_ensembles-ex1: a silent cell goes to place 0
def assign_and_score(counts, labels, places, new, mask):
    means = torch.stack([counts[labels == p].mean(0) for p in range(places)])
    place = means.argmax(0)
    scores = torch.zeros(len(new), places)
    for p in range(places):
        own = place == p
        if own.any():
            scores[:, p] = (new * mask)[:, own].sum(1) / own.sum()
    return place, scores


# %% spiking_ensembles-ex1: masked cells leave the denominator
def assign_and_score(counts, labels, places, new, mask):
    means = torch.stack([counts[labels == p].mean(0) for p in range(places)])
    place = torch.where(means.max(0).values > 0, means.argmax(0), -1)
    scores = torch.zeros(len(new), places)
    for p in range(places):
        own = (place == p) & mask
        if own.any():
            scores[:, p] = new[:, own].mean(1)
    return place, scores


# %% spiking_ensembles-ex1: the sum over cells
def assign_and_score(counts, labels, places, new, mask):
    means = torch.stack([counts[labels == p].mean(0) for p in range(places)])
    place = torch.where(means.max(0).values > 0, means.argmax(0), -1)
    scores = torch.zeros(len(new), places)
    for p in range(places):
        scores[:, p] = (new * mask)[:, place == p].sum(1)
    return place, scores


# %% spiking_ensembles-ex1: the mask is forgotten
def assign_and_score(counts, labels, places, new, mask):
    means = torch.stack([counts[labels == p].mean(0) for p in range(places)])
    place = torch.where(means.max(0).values > 0, means.argmax(0), -1)
    scores = torch.zeros(len(new), places)
    for p in range(places):
        own = place == p
        if own.any():
            scores[:, p] = new[:, own].mean(1)
    return place, scores


# %% spiking_ensembles-ex2: milliseconds taken for seconds
def spikes_of_a_pixel(pixel, ms):
    expected = pixel / 4 * ms
    return expected, math.exp(-expected)


# %% spiking_ensembles-ex2: the pixel itself is the rate
def spikes_of_a_pixel(pixel, ms):
    expected = pixel * ms / 1000
    return expected, math.exp(-expected)


# %% spiking_ensembles-ex2: silence as one minus the mean
def spikes_of_a_pixel(pixel, ms):
    expected = pixel / 4 * ms / 1000
    return expected, max(0.0, 1 - expected)


# %% spiking_ensembles-ex2: the probability of at least one spike
def spikes_of_a_pixel(pixel, ms):
    expected = pixel / 4 * ms / 1000
    return expected, 1 - math.exp(-expected)


# %% spiking_ensembles-ex3: the mask does no harm
def recall_after(places, gone):
    return 1.0, 1.0


# %% spiking_ensembles-ex3: everything is lost
def recall_after(places, gone):
    return (0.0 if gone else 1.0), 1.0


# %% spiking_ensembles-ex3: masked places are guessed
def recall_after(places, gone):
    return (places - gone) / places + gone / places**2, 1.0


# %% spiking_ensembles-ex3: masked places are never on any list
def recall_after(places, gone):
    return (places - gone) / places, (places - gone) / places


# %% spiking_ensembles-ex4: both the same
def synapse_bill(places, region, cells, inputs, images, epochs, steps):
    modular = places * images * epochs * steps * cells * inputs
    return modular, modular


# %% spiking_ensembles-ex4: every module sees every place
def synapse_bill(places, region, cells, inputs, images, epochs, steps):
    modular = places * images * epochs * steps * cells * inputs * (places // region)
    return modular, modular


# %% spiking_ensembles-ex4: one module only
def synapse_bill(places, region, cells, inputs, images, epochs, steps):
    one = region * images * epochs * steps * cells * inputs
    return one, one * (places // region) ** 2


# %% spiking_ensembles-ex4: the large network with the cells of one module
def synapse_bill(places, region, cells, inputs, images, epochs, steps):
    modular = places * images * epochs * steps * cells * inputs
    return modular * (places // region), modular
