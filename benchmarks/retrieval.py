"""How well layers find images of the same class, near-duplicates, and how fast indexes are: the figures of docs/retrieval.md.

    vgg features caltech -o maps.npz -m keras/vgg19 --layer pool5 --layer fc6 --maps
    python benchmarks/retrieval.py maps.npz --copies copies.npz

Each image of the class folders is a query against all others. Copies are named KIND/CLASS-NAME; the one relevant image of each
is CLASS/NAME.
"""

import time
from pathlib import Path

import numpy as np
from measurements import Measurements, parser

COMPONENTS = 64  # principal components that are kept
QUERIES = 500  # of an index


def unit(vectors):
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def reduced(vectors, whiten):
    """The first principal components of the vectors, with `whiten` each scaled to variance 1."""
    centred = vectors - vectors.mean(0)
    _, values, directions = np.linalg.svd(centred, full_matrices=False)
    components = centred @ directions[:COMPONENTS].T
    return unit(components / values[:COMPONENTS] if whiten else components)


def poolings(values):
    if values.shape[2:] in ((), (1, 1)):
        return {"": values.reshape(len(values), -1)}
    flat = values.reshape(*values.shape[:2], -1).astype(np.float64)
    return {"average": flat.mean(2), "maximum": flat.max(2), "GeM, p = 3": (flat.clip(1e-6) ** 3).mean(2) ** (1 / 3)}


def figures(similarity, classes):
    """Recall at 1 and 5 (at least one image of the class), and mean average precision, in percent."""
    similarity = similarity.copy()
    np.fill_diagonal(similarity, -np.inf)
    order = np.argsort(-similarity, axis=1)[:, :-1]
    relevant = classes[order] == classes[:, None]
    precision = relevant.cumsum(1) / np.arange(1, relevant.shape[1] + 1)
    average = (precision * relevant).sum(1) / relevant.sum(1)
    return [100 * value.mean() for value in (relevant[:, 0], relevant[:, :5].any(1), average)]


def same_class(arrays, names, results):
    classes = np.array([Path(name).parent.name for name in names])
    for layer, values in arrays.items():
        for pooling, vectors in poolings(values).items():
            rows = {"not normalised": vectors, "normalised": unit(vectors)}
            rows |= {"components": reduced(unit(vectors), False), "whitened": reduced(unit(vectors), True)}
            for name, one in rows.items():
                what = {"measurement": "same class", "layer": layer, "pooling": pooling, "vectors": name}
                recall_1, recall_5, precision = figures(one @ one.T, classes)
                values = {"images": len(names), "size": vectors.shape[1]}
                results.add(what, **values, recall_at_1=recall_1, recall_at_5=recall_5, mean_average_precision=precision)


def near_duplicates(arrays, names, copies, copied, results):
    originals = np.array([f"{Path(name).parent.name}-{Path(name).stem}" for name in names])
    kinds = np.array([Path(name).parent.name for name in copied])
    for layer, vectors in copies.items():
        values = arrays[layer]
        indexed = next(iter(poolings(values).values()))
        best = (unit(vectors) @ unit(indexed).T).argmax(1)
        right = originals[best] == [Path(name).stem for name in copied]
        for kind in sorted(set(kinds)):
            what = {"measurement": "original of a copy", "layer": layer, "copies": kind}
            results.add(what, images=int((kinds == kind).sum()), recall_at_1=100 * right[kinds == kind].mean())


def indexes(maps, count, results):
    """Exact search and HNSW on the vectors of single positions, which are many."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors = unit(maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])).astype(np.float32)
    vectors = vectors[np.random.default_rng(0).permutation(len(vectors))[: count + QUERIES]]
    queries, vectors = vectors[:QUERIES], np.ascontiguousarray(vectors[QUERIES:])
    start = time.process_time()
    exact = np.array([np.argpartition(-(vectors @ query), 10)[:10] for query in queries])
    what = {"measurement": "index", "images": len(vectors), "size": vectors.shape[1]}
    results.add({**what, "index": "exact"}, ms=1e3 * (time.process_time() - start) / QUERIES)
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    start = time.process_time()
    index.add(vectors)
    built = time.process_time() - start
    for width in (16, 64, 256):
        index.hnsw.efSearch = width
        start = time.process_time()
        found = index.search(queries, 10)[1]
        elapsed = 1e3 * (time.process_time() - start) / QUERIES
        shared = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found, exact, strict=True)])
        results.add(
            {**what, "index": f"HNSW, efSearch {width}"}, ms=elapsed, percent_of_exact=100 * shared, seconds_to_build=built
        )


def read(path):
    arrays = dict(np.load(path))
    return arrays.pop("names"), arrays


def main():
    described = parser(__doc__)
    described.add_argument("features", help="features of class folders, written by vgg features --maps")
    described.add_argument("--copies", help="features of copies of some of the images")
    described.add_argument("--index", type=int, help="number of vectors of a search index, from the first layer's maps")
    options = described.parse_args()
    results = Measurements("retrieval", options.output)
    names, arrays = read(options.features)
    same_class(arrays, names, results)
    if options.copies:
        copied, copies = read(options.copies)
        near_duplicates(arrays, names, copies, copied, results)
    if options.index:
        indexes(next(iter(arrays.values())), options.index, results)


if __name__ == "__main__":
    main()
