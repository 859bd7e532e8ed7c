"""The Fréchet distance of two sets of Inception's 2048 features: ours against SciPy's matrix root, in one run.

Baseline: `scipy.linalg.sqrtm` of the product of the covariances and the trace of what it returns, as pytorch-fid does
it. Ours: `frechet_distance`, a Cholesky factor and the eigenvalues of a symmetric product. Both in float64 on the CPU,
of the same two covariances in random bases, with eigenvalues that fall as 11 i^-1.2: so do those of Inception's
features of 1,200 photographs (monet2photo's), from the first to the 500th. `--rank` leaves just so many above zero, as
few images do. The rounds alternate, the medians of the processor time are compared, since others may use the machine.

    python tools/bench_frechet.py [--dimensions 2048] [--rank 500] [--rounds 3] [--threads 1] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np
import scipy.linalg
import torch

from translate.metrics.frechet import Gaussian, frechet_distance


def draw(dimensions: int, rank: int, seed: int) -> Gaussian:
    """A Gaussian with the eigenvalues 11 i^-1.2, i = 1 ... rank, in a random basis."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(dimensions, dimensions, dtype=torch.float64, generator=generator)
    basis = torch.linalg.qr(square).Q[:, :rank]
    values = 11 * torch.arange(1, rank + 1, dtype=torch.float64) ** -1.2
    mean = torch.randn(dimensions, dtype=torch.float64, generator=generator) / dimensions**0.5
    return Gaussian(rank + 1, mean, basis * values @ basis.T)


def by_scipy(a: Gaussian, b: Gaussian) -> float:
    """Eq. 6 as it stands."""
    root = scipy.linalg.sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    traces = np.trace(a.covariance.numpy()) + np.trace(b.covariance.numpy())
    return float(np.square((a.mean - b.mean).numpy()).sum() + traces - 2 * np.trace(root).real)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimensions", type=int, default=2048)
    parser.add_argument("--rank", type=int, help="of both covariances; full by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="torch's; SciPy's are OMP_NUM_THREADS")
    parser.add_argument("--json", action="store_true", help="print one JSON object, nothing else")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    rank = arguments.rank or arguments.dimensions
    a, b = (draw(arguments.dimensions, rank, seed) for seed in (0, 1))
    sides = {"scipy": by_scipy, "translate": frechet_distance}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, float] = {}
    small = draw(64, 64, 2)
    for distance in sides.values():
        distance(small, small)  # loads the libraries
    for _ in range(arguments.rounds):
        for name, distance in sides.items():
            start = time.process_time()
            found[name] = distance(a, b)
            seconds[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "scipy_seconds": round(medians["scipy"], 3),
        "translate_seconds": round(medians["translate"], 3),
        "ratio": round(medians["scipy"] / medians["translate"], 2),
        "scipy_distance": found["scipy"],
        "translate_distance": found["translate"],
        "relative_difference": abs(found["scipy"] - found["translate"]) / found["scipy"],
        "dimensions": arguments.dimensions,
        "rank": rank,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
    }
    if arguments.json:
        print(json.dumps(result))
        return
    for key, value in result.items():
        print(f"{key.replace('_', ' '):24} {value}")


if __name__ == "__main__":
    main()
