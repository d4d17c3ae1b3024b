"""How well layers find images of the same class, near-duplicates, and how fast indexes are: the figures of docs/retrieval.md.

    vgg features caltech -o maps.npz -m keras/vgg19 --layer pool5 --layer fc6 --maps
    python benchmarks/retrieval.py maps.npz --copies copies.npz

Each image of the class folders is a query against all others. Copies are named KIND/CLASS-NAME; the one relevant image of each
is CLASS/NAME.
"""

import argparse
import time
from pathlib import Path

import numpy as np

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


def same_class(arrays, names):
    classes = np.array([Path(name).parent.name for name in names])
    print(f"{len(names)} images, {len(set(classes))} classes: recall@1, recall@5, mAP")
    for layer, values in arrays.items():
        for pooling, vectors in poolings(values).items():
            rows = {"not normalised": vectors, "normalised": unit(vectors)}
            rows |= {"components": reduced(unit(vectors), False), "whitened": reduced(unit(vectors), True)}
            for name, one in rows.items():
                cells = " ".join(f"{value:5.1f}" for value in figures(one @ one.T, classes))
                print(f"{layer:8} {pooling:11} {vectors.shape[1]:6} {name:14} {cells}")


def near_duplicates(arrays, names, copies, copied):
    originals = np.array([f"{Path(name).parent.name}-{Path(name).stem}" for name in names])
    kinds = np.array([Path(name).parent.name for name in copied])
    print(f"original of {len(copied)} copies found first")
    for layer, vectors in copies.items():
        values = arrays[layer]
        indexed = next(iter(poolings(values).values()))
        best = (unit(vectors) @ unit(indexed).T).argmax(1)
        right = originals[best] == [Path(name).stem for name in copied]
        print(f"{layer:8}", *(f"{kind} {100 * right[kinds == kind].mean():.1f}" for kind in sorted(set(kinds))))


def indexes(maps, count):
    """Exact search and HNSW on the vectors of single positions, which are many."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors = unit(maps.transpose(0, 2, 3, 1).reshape(-1, maps.shape[1])).astype(np.float32)
    vectors = vectors[np.random.default_rng(0).permutation(len(vectors))[: count + QUERIES]]
    queries, vectors = vectors[:QUERIES], np.ascontiguousarray(vectors[QUERIES:])
    start = time.process_time()
    exact = np.array([np.argpartition(-(vectors @ query), 10)[:10] for query in queries])
    print(
        f"{len(vectors)} vectors of {vectors.shape[1]}: exact, {1e3 * (time.process_time() - start) / QUERIES:.2f} ms a query"
    )
    index = faiss.IndexHNSWFlat(vectors.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    start = time.process_time()
    index.add(vectors)
    print(f"HNSW: built in {time.process_time() - start:.1f} s")
    for width in (16, 64, 256):
        index.hnsw.efSearch = width
        start = time.process_time()
        found = index.search(queries, 10)[1]
        elapsed = 1e3 * (time.process_time() - start) / QUERIES
        shared = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found, exact, strict=True)])
        print(f"efSearch {width:3}: {100 * shared:.1f}% of the exact ten nearest, {elapsed:.2f} ms a query")


def read(path):
    arrays = dict(np.load(path))
    return arrays.pop("names"), arrays


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("features", help="features of class folders, written by vgg features --maps")
    parser.add_argument("--copies", help="features of copies of some of the images")
    parser.add_argument("--index", type=int, help="number of vectors of a search index, from the first layer's maps")
    options = parser.parse_args()
    names, arrays = read(options.features)
    same_class(arrays, names)
    if options.copies:
        copied, copies = read(options.copies)
        near_duplicates(arrays, names, copies, copied)
    if options.index:
        indexes(next(iter(arrays.values())), options.index)


if __name__ == "__main__":
    main()
