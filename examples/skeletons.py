"""Skeleton data sets: reading, normalizing and sampling sequences of joints.

MSR Action3D, 20 actions of ten persons, is on the home page of Wanqing Li,
"MSR Action Recognition Datasets": a zip of files aAA_sSS_eEE_skeleton3D.txt
(action, subject, execution), with a list files_used.txt of those to use, one
name (aAA_sSS_eEE) a line. NTU RGB+D, 60 actions, is given by the ROSE lab (NTU
Singapore) on request: a folder of .skeleton files.

Axis letters: B sequences, T frames, P persons, J joints.
"""

import pathlib
import re
import zipfile
from typing import NamedTuple

import numpy as np

import arguments


class Sequence(NamedTuple):
    """One recorded action; joints are (T, P, J, 3), in meters, y upwards."""

    name: str
    joints: np.ndarray
    label: int
    subject: int
    camera: int = 1


class Dataset(NamedTuple):
    """The skeletons of a data set, and its splits."""

    actions: tuple[str, ...]
    parents: tuple[int, ...]  # of each joint; the hip is its own
    hip: int
    neck: int
    shoulders: tuple[int, int] | None  # right, left; None: all face one way
    training: dict[str, tuple[int, ...]]  # by the name of the split


MSR = Dataset(
    actions=(
        "high arm wave", "horizontal arm wave", "hammer", "hand catch",
        "forward punch", "high throw", "draw X", "draw tick", "draw circle",
        "hand clap", "two hand wave", "side boxing", "bend", "forward kick",
        "side kick", "jogging", "tennis swing", "tennis serve", "golf swing",
        "pickup and throw",
    ),
    parents=(2, 2, 3, 6, 6, 6, 6, 0, 1, 7, 8, 9, 10, 4, 5, 13, 14, 15, 16, 2),
    hip=6,
    neck=2,
    shoulders=None,
    training={"subject": (1, 3, 5, 7, 9)},
)  # fmt: skip
NTU = Dataset(
    actions=tuple(f"A{number:03}" for number in range(1, 61)),
    parents=(
        0, 0, 20, 2, 20, 4, 5, 6, 20, 8, 9, 10, 0, 12, 13, 14, 0, 16, 17, 18,
        1, 22, 7, 24, 11,
    ),
    hip=0,
    neck=20,
    shoulders=(8, 4),
    training={
        "subject": (
            1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34,
            35, 38,
        ),
        "view": (2, 3),
    },
)  # fmt: skip
DATASETS = {"msr": MSR, "ntu": NTU}
MSR_JOINTS, NTU_JOINTS, NTU_PERSONS = len(MSR.parents), len(NTU.parents), 2
MSR_NAME = re.compile(r"a(\d\d)_s(\d\d)_e(\d\d)")
NTU_NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")


def load_msr(path):
    """Read the Sequences that files_used.txt in the zip lists.

    Raises:
        arguments.UserError: If the file is not of the form described above.
    """
    errors = OSError, zipfile.BadZipFile
    with (
        arguments.explained(f"--data {path}", errors),
        zipfile.ZipFile(path) as file,
    ):
        names = _text(file, path, "files_used.txt").split()
        if not names:
            raise arguments.UserError(
                f"{path}: expected names of sequences in files_used.txt, "
                "got none"
            )
        return [_msr_sequence(file, path, name) for name in names]


def _text(file, path, name):
    if name not in file.namelist():
        raise arguments.UserError(f"{path}: {name} is missing")
    # A damaged zip may raise anything.
    with arguments.explained(f"{path}: {name}", Exception):
        return file.read(name).decode()


def _msr_sequence(file, path, name):
    match = MSR_NAME.fullmatch(name)
    if not match:
        raise arguments.UserError(
            f"{path}: files_used.txt: expected names aAA_sSS_eEE, got {name}"
        )
    action, subject, _ = map(int, match.groups())
    _check_action(action, MSR, f"{path}: files_used.txt: {name}")
    member = f"{name}_skeleton3D.txt"
    lines = _text(file, path, member).rstrip().splitlines()
    joints = _numbers(lines, 4, f"{path}: {member}")
    if not lines or len(lines) % MSR_JOINTS:
        raise arguments.UserError(
            f"{path}: {member}: expected {MSR_JOINTS} lines for each frame, "
            f"got {len(lines)} lines"
        )
    joints = joints.reshape(-1, 1, MSR_JOINTS, 4)[..., :3]
    _check_seen(joints, f"{path}: {member}")
    return Sequence(name, joints, action - 1, subject)


def _check_action(action, dataset, source):
    classes = len(dataset.actions)
    if not 1 <= action <= classes:
        raise arguments.UserError(
            f"{source}: expected an action of 1 to {classes}, got {action}"
        )


def _check_seen(joints, source):
    if not joints.any():
        raise arguments.UserError(
            f"{source}: expected a skeleton in some frame, got none"
        )


def _numbers(lines, width, source, first=1):
    """(lines, width), float32; `first` is the number of the first line."""
    rows = _finite([line.split() for line in lines])
    if rows is not None and rows.shape == (len(lines), width):
        return rows
    for number, line in enumerate(lines, first):  # Which of them is it?
        row = _finite(line.split())
        if row is None or row.shape != (width,):
            raise arguments.UserError(
                f"{source}: expected {width} finite numbers in line {number}, "
                f"got {line.strip()[:60]!r}"
            )
    return np.zeros((0, width), "float32")


def _finite(words):
    """The array of these numbers, or None if they are not all finite."""
    try:
        array = np.array(words, "float32")
    except ValueError:
        return None
    return array if np.isfinite(array).all() else None


def load_ntu(path, missing=None):
    """Read the Sequences in the .skeleton files of a folder.

    Arguments:
        path: The folder.
        missing: A text file with names of sequences to leave out.

    Raises:
        arguments.UserError: If a file is not of the published form.
    """
    left_out = set() if missing is None else _missing_names(missing)
    with arguments.explained(f"--data {path}"):
        if not pathlib.Path(path).is_dir():
            raise arguments.UserError(f"--data {path}: expected a folder")
        files = sorted(pathlib.Path(path).glob("*.skeleton"))
        files = [file for file in files if file.stem not in left_out]
    if not files:
        raise arguments.UserError(
            f"--data {path}: expected .skeleton files, got none"
        )
    return [_ntu_sequence(file) for file in files]


def _missing_names(path):
    with arguments.explained(f"--missing {path}", (OSError, ValueError)):
        text = pathlib.Path(path).read_text()
    names = {match[0] for match in NTU_NAME.finditer(text)}
    if not names:
        raise arguments.UserError(
            f"--missing {path}: expected names SsssCcccPpppRrrrAaaa, got none"
        )
    return names


def _ntu_sequence(file):
    match = NTU_NAME.fullmatch(file.stem)
    if not match:
        raise arguments.UserError(
            f"{file}: expected a name SsssCcccPpppRrrrAaaa.skeleton"
        )
    _, camera, subject, _, action = map(int, match.groups())
    _check_action(action, NTU, file)
    joints = read_skeleton(file)
    _check_seen(joints, file)
    return Sequence(file.stem, joints, action - 1, subject, camera)


def read_skeleton(path):
    """Joints (T, 2, 25, 3) of a .skeleton file; zeros where nobody is seen.

    They are those of the two tracked bodies that move most, most first.

    Raises:
        arguments.UserError: If the file is not of the published form.
    """
    with arguments.explained(path, (OSError, ValueError)):
        lines = pathlib.Path(path).read_text().splitlines()
    position = 0

    def take(count, width):
        nonlocal position
        start, position = position, position + count
        if position > len(lines):
            raise arguments.UserError(
                f"{path}: expected {position} lines or more, got {len(lines)}"
            )
        return _numbers(lines[start:position], width, path, start + 1)

    def number():
        value = take(1, 1).item()
        if value < 0 or value % 1:
            raise arguments.UserError(
                f"{path}: expected a count in line {position}, got {value}"
            )
        return int(value)

    frames = number()
    bodies = {}
    for frame in range(frames):
        for _ in range(number()):
            # The number of a body is too long for float32: compare its text.
            take(1, 10)
            body = lines[position - 1].split()[0]
            joints = number()
            if joints != NTU_JOINTS:
                raise arguments.UserError(
                    f"{path}: expected {NTU_JOINTS} joints in line {position}, "
                    f"got {joints}"
                )
            where = bodies.setdefault(
                body, np.zeros((frames, NTU_JOINTS, 3), "float32")
            )
            where[frame] = take(NTU_JOINTS, 12)[:, :3]
    if "".join(lines[position:]).strip():
        raise arguments.UserError(
            f"{path}: expected {position} lines, got {len(lines)}"
        )
    kept = sorted(bodies.values(), key=way, reverse=True)[:NTU_PERSONS]
    result = np.zeros((frames, NTU_PERSONS, NTU_JOINTS, 3), "float32")
    for person, joints in enumerate(kept):
        result[:, person] = joints
    return result


def way(joints):
    """How far joints (T, J, 3) move in all, over the frames with a body."""
    seen = joints[joints.any(axis=(1, 2))]
    if not len(seen):
        return -1.0
    return np.linalg.norm(np.diff(seen, axis=0), axis=-1).sum()


def normalize(joints, dataset):
    """Make joints (T, P, J, 3) independent of place and size.

    Joints are relative to the hip of their person, and hips to the hip of the
    first person in the first frame. The median distance from hip to neck of the
    first person is 1. If the data set has `shoulders`, they point along x in
    the first frame, which makes joints independent of direction too. Frames
    without anybody are left out; persons who are not seen are zeros.
    """
    joints = joints[joints.any(axis=(1, 2, 3))]
    seen = joints.any(axis=(2, 3))  # (T, P)
    first = joints[:, 0][seen[:, 0]]  # (T, J, 3) of the first person
    spine = first[:, dataset.neck] - first[:, dataset.hip]
    size = max(np.median(np.linalg.norm(spine, axis=-1)), 1e-6)
    hips = joints[:, :, dataset.hip].copy()
    joints = joints - hips[:, :, None]
    joints[:, :, dataset.hip] = hips - first[0, dataset.hip]
    joints = joints * seen[:, :, None, None] / size
    if dataset.shoulders:
        right, left = dataset.shoulders
        x, _, z = first[0, left] - first[0, right]
        joints = joints @ rotation(np.arctan2(z, x), 0.0)
    return joints.astype("float32")


def rotation(vertical, horizontal):
    """Matrices (..., 3, 3), to multiply with on the right: about y, then x."""
    cos, sin = np.cos(vertical), np.sin(vertical)
    zero, one = np.zeros_like(cos), np.ones_like(cos)
    about_y = np.array([[cos, zero, -sin], [zero, one, zero], [sin, zero, cos]])
    cos, sin = np.cos(horizontal), np.sin(horizontal)
    about_x = np.array([[one, zero, zero], [zero, cos, -sin], [zero, sin, cos]])
    return np.moveaxis(about_y, (0, 1), (-2, -1)) @ np.moveaxis(
        about_x, (0, 1), (-2, -1)
    )


def crop(joints, frames, rng, shortest):
    """Sample `frames` frames of a random piece of a sequence.

    The piece is at least the share `shortest` of the sequence. It is cut into
    `frames` equal parts, and one moment is drawn from each; between two frames,
    joints move in a straight line.
    """
    last = len(joints) - 1
    span = last * rng.uniform(shortest, 1)
    start = rng.uniform(0, last - span)
    parts = (np.arange(frames) + rng.uniform(size=frames)) / frames
    times = start + span * parts
    before = np.minimum(times.astype(int), max(last - 1, 0))
    weight = (times - before).astype("float32")[:, None, None, None]
    after = np.minimum(before + 1, last)
    return (1 - weight) * joints[before] + weight * joints[after]


def augment(x, rng, angle=0.6, stretch=0.25, noise=0.02):
    """Turn and stretch x (B, T, P, J, 3) at random, and add noise.

    It is turned by up to `angle` radians about the vertical axis and by up to
    half of it about the horizontal axis, stretched by up to `stretch` along
    each axis, and `noise` is the standard deviation of the noise.
    """
    count = len(x)
    turned = rotation(
        rng.uniform(-angle, angle, count),
        rng.uniform(-angle / 2, angle / 2, count),
    )
    stretched = rng.uniform(1 - stretch, 1 + stretch, (count, 1, 3))
    change = (turned * stretched).astype("float32")
    seen = x.any(axis=(-2, -1), keepdims=True)
    x = x @ change[:, None, None]
    return x + noise * rng.standard_normal(x.shape, "float32") * seen


def features(x, dataset, distances=(1, 5)):
    """From normalized joints (B, T, P, J, 3) to (B, T, 4 * P * J * 3).

    They are positions, their changes over one and over five frames, and the
    direction of the bone that leads from each joint towards the hip.
    """
    times = np.arange(x.shape[1])
    changes = [
        x - x[:, np.maximum(times - distance, 0)] for distance in distances
    ]
    y = x.copy()
    y[..., dataset.hip, :] = 0  # where it is for the others
    bones = y - y[..., dataset.parents, :]
    lengths = np.linalg.norm(bones, axis=-1, keepdims=True)
    parts = [x, *changes, bones / np.maximum(lengths, 1e-3)]
    return np.concatenate(
        [part.reshape(*x.shape[:2], -1) for part in parts], axis=-1
    )
