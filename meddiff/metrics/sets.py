"""Images of several methods, compared as sets: a sample may be far from the truth and look like it."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from meddiff.metrics.distances import patch_wasserstein, sliced_wasserstein, spectrum_distance

CLEAN = "clean"  # the name under which the clean images themselves are compared: what chance alone makes of it


class Sets:
    """The images that methods made of some patients, beside the clean ones of the same and of other patients."""

    def __init__(
        self,
        reference: Tensor,  # (N, C, *size), clean images of held-out patients
        patients: Sequence[str],  # of each of them
        value_range: tuple[float, float],  # everything is clipped to it
    ) -> None:
        self.reference, self.patients, self.range = reference, tuple(patients), value_range
        self.clean: list[Tensor] = []
        self.owners: list[str] = []  # of every image that was added
        self.results: dict[str, list[Tensor]] = {}

    def add(self, patient: str, clean: Tensor, results: Mapping[str, Tensor]) -> None:
        """The images (B, C, *size) of one patient: clean, and by every method."""
        self.clean.append(clean)
        self.owners += [patient] * len(clean)
        for name, images in results.items():
            self.results.setdefault(name, []).append(images.clamp(*self.range))

    def distances(self) -> dict[str, dict[str, float]]:
        """Of every method, and of the clean images as if they were one:

        sliced_wasserstein  to the clean images of the same slices, in image units. Pairs lie side by side in it, so that it
                            measures error more than texture: among samples and means, the mean is nearer
        spectrum_db         the ratio of power spectra to those of the same slices, in dB
        texture/1, /2, ...  `patch_wasserstein` to the clean images of the same slices, from the finest level on; texture is
                            their mean. There are so many patches that pairs hardly matter, and anatomy is the same
        of_others/1, ...    the same to clean images of other patients: nothing is shared, and what patients differ by adds to
                            it. Patients are halved, and each half is compared with as many images of those that are
                            not in it: the distance of two sets is less due to chance, the larger both are. Missing where all
                            images are of one patient
        """
        everything = {CLEAN: self.clean, **self.results}
        clean = torch.cat(self.clean)
        halves = self._halves()
        found: dict[str, dict[str, float]] = {}
        for name, of_cases in everything.items():
            images = torch.cat(of_cases)
            found[name] = {
                "sliced_wasserstein": sliced_wasserstein(images, clean),
                "spectrum_db": spectrum_distance(images, clean),
            }
            found[name] |= _by_level("texture", [patch_wasserstein(images, clean)])
            if halves:
                apart = [patch_wasserstein(images[own], self.reference[others]) for own, others in halves]
                found[name] |= _by_level("of_others", apart)
        return found

    def _halves(self) -> list[tuple[list[int], list[int]]]:
        """Of each half of the patients, which images are theirs, and which reference images are of others."""
        names = list(dict.fromkeys(self.owners))
        pairs = []
        for half in (set(names[::2]), set(names[1::2])):
            own = [i for i, patient in enumerate(self.owners) if patient in half]
            others = [i for i, patient in enumerate(self.patients) if patient not in half]
            if own and others:
                every = max(1.0, len(others) / len(own))  # as many of one as of the other, where there are enough
                pairs.append((own, [others[int(k * every)] for k in range(min(len(own), len(others)))]))
        return pairs


def _by_level(name: str, distances: Sequence[Sequence[float]]) -> dict[str, float]:
    """The mean of several measurements: over all levels, and of each."""
    levels = torch.tensor(distances).mean(0)
    return {name: float(levels.mean()), **{f"{name}/{2**k}": float(value) for k, value in enumerate(levels)}}
