"""Small folders of photos for tests: every image is one colour, told by its place."""

from PIL import Image


def colour(part, label, number):
    """The RGB that `write` gives an image."""
    return (40 * label + 10, 10 * number + 5, {"train": 20, "test": 120, "val": 220}.get(part, 70))


def write(root, *, parts=("train", "test"), classes=("ant", "bee"), count=3, side=8):
    """``root/<part>/<class>/<number>.png``; returns the root."""
    for part in parts:
        for label, name in enumerate(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (side + number, side), colour(part, label, number))
                image.save(folder / f"{number}.png")
    return root
