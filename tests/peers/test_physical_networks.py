"""The reservoir's read-out and plain networks beside scikit-learn's."""

import numpy as np
import pytest
import torch

from lib.beyond_backprop import physical_networks as pn
from lib.core.data import digits
from lib.core.seeds import batch_indices, child
from tests.helpers import assert_close

linear_model = pytest.importorskip("sklearn.linear_model")
neural_network = pytest.importorskip("sklearn.neural_network")


def test_reservoir_is_ridge_classification_of_the_devices_answers():
    data = digits(600, 600)
    fiber = pn.MultimodeFiber(74, 128, child(0, "fiber"), bits=None, photons=None)
    ours = pn.Reservoir(fiber, data.x, data.y, 10, lam=10.0)
    z, z_test = (ours._features(x)[:, :-1].double().numpy() for x in (data.x, data.x_test))
    # scikit-learn codes classes by -1 and 1 and leaves the constant out of the ridge; features are
    # centered on the training set, so the constant is the mean of the targets on both sides.
    peer = linear_model.RidgeClassifier(alpha=10.0).fit(z, data.y.numpy())
    theirs = (peer.decision_function(z_test) + 1) / 2
    share = np.bincount(data.y.numpy()) / len(data.y)
    assert_close(ours.scores(data.x_test) - ours.weights[-1], theirs - share, 1e-4)
    agree = (ours.predict(data.x_test).numpy() == peer.predict(z_test)).mean()
    assert agree > 0.99


def test_local_training_is_not_far_from_a_plain_network():
    data = digits(600, 600)
    trainer = pn.mlp_trainer([64, 128, 128, 10], seed=0)
    for step in range(300):
        i = batch_indices(600, 60, step, 0)
        trainer.step(data.x[i], data.y[i])
    ours = (trainer.predict(data.x_test).argmax(1) == data.y_test).double().mean().item()
    peer = neural_network.MLPClassifier(
        (128, 128), batch_size=60, max_iter=30, random_state=0, learning_rate_init=3e-3
    )
    with pytest.warns():  # it has not converged after the same 300 updates
        peer.fit(data.x, data.y)
    theirs = peer.score(data.x_test, data.y_test)
    assert ours > theirs - 0.04
    assert torch.isfinite(trainer.predict(data.x_test)).all()
