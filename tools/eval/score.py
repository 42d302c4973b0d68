#!/usr/bin/env python3
"""Scores class-conditional pictures with the independent classifier of classifier.py.

    score.py CLASSIFIER.pt PICTURES --real DATA/test [--gap N] [--json]

PICTURES is a folder with one folder of pictures per class, or a contact sheet with one row of
32 x 32 pictures per class in the classifier's order (alphabetical), N pixels between cells.
Prints, per class and in all: the share assigned to the class that was asked for, and the mean
distance between features of pictures of one class, as a share of the same among real pictures
(0: all alike; 1: as varied as the real ones). Exit status 1 below 0.70 or 0.60.
"""
import argparse
import json
import os
import sys

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from classifier import load_classifier, load_split, scaled

CELL = 32


def split_sheet(path, rows, gap):
    with Image.open(path) as im:
        a = np.asarray(im.convert("RGB"))
    step = CELL + gap
    for border in (gap, 0):  # the gap may run around the sheet too
        columns = (a.shape[1] - 2 * border + gap) // step
        if (rows * step - gap + 2 * border == a.shape[0]
                and columns * step - gap + 2 * border == a.shape[1]):
            break
    else:
        raise SystemExit(f"{path}: expected {rows} rows of cells of {CELL} pixels, gap {gap}, "
                         f"found {a.shape[1]} x {a.shape[0]} pixels; try --gap")
    cells, labels = [], []
    for r in range(rows):
        for c in range(columns):
            y, x = border + r * step, border + c * step
            cells.append(a[y:y + CELL, x:x + CELL])
            labels.append(r)
    return torch.from_numpy(np.stack(cells)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


@torch.no_grad()
def look(model, x):
    """-> predicted classes, features."""
    classes, features = [], []
    for part in x.split(500):
        f = model.features(scaled(part))
        features.append(f)
        classes.append(model.head(f).argmax(1))
    return torch.cat(classes), torch.cat(features)


def spread(f):
    """Mean distance between two different rows."""
    n = len(f)
    return torch.cdist(f, f).sum().item() / (n * (n - 1)) if n > 1 else float("nan")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("classifier")
    p.add_argument("pictures")
    p.add_argument("--real", required=True, help="real pictures, one folder per class")
    p.add_argument("--gap", type=int, default=0)
    p.add_argument("--json", action="store_true")
    a = p.parse_args()
    model, names, on_real = load_classifier(a.classifier)
    real, real_y, real_names = load_split(a.real)
    if real_names != names:
        raise SystemExit(f"{a.real}: expected the classes {names}, found {real_names}")
    if os.path.isdir(a.pictures):
        x, y, found = load_split(a.pictures)
        if [n for n in found if n not in names]:
            raise SystemExit(f"{a.pictures}: expected folders named {names}, found {found}")
        y = torch.tensor([names.index(n) for n in found])[y]
    else:
        x, y = split_sheet(a.pictures, len(names), a.gap)
    guess, features = look(model, x)
    _, real_features = look(model, real)
    rows = []
    for k, name in enumerate(names):
        mine = y == k
        if mine.any():
            rows.append({"class": name, "pictures": int(mine.sum()),
                         "accuracy": (guess[mine] == k).float().mean().item(),
                         "distance": spread(features[mine]) / spread(real_features[real_y == k])})
    result = {"pictures": len(x), "classifier_on_real": on_real,
              "accuracy": (guess == y).float().mean().item(),
              "distance": float(np.mean([r["distance"] for r in rows])), "classes": rows}
    if a.json:
        print(json.dumps(result))
    else:
        for r in rows:
            print(f"{r['class']:12} {r['pictures']:5}  accuracy {r['accuracy']:.3f}  "
                  f"distance {r['distance']:.3f}")
        print(f"{'all':12} {len(x):5}  accuracy {result['accuracy']:.3f}  "
              f"distance {result['distance']:.3f}  (classifier on real pictures: {on_real:.3f})")
    return 0 if result["accuracy"] >= 0.70 and result["distance"] >= 0.60 else 1


if __name__ == "__main__":
    sys.exit(main())
