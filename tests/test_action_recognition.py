"""The example on skeletons: its data sets, crops, network, and results."""

import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest

import action_recognition as example
import skeletons
from runs import main, refused, result, resumed
from skeletons import MSR, NTU

NAME = "S001C002P003R001A004"


def msr_text(frames, rng, action=1):
    """Lines of a body whose hand waves faster for a higher action."""
    joints = rng.normal(size=(1, 20, 4)) * 0.3 + [0, 0, 3, 1]
    joints = np.repeat(joints, frames, axis=0)
    joints[:, 11, 1] += np.sin(np.arange(frames) * action)
    return "".join(
        "{:f} {:f} {:f} {:f}\n".format(*joint)
        for joint in joints.reshape(-1, 4)
    )


def msr_names(actions=(1, 2), subjects=(1, 2, 3, 4)):
    return [
        f"a{action:02}_s{subject:02}_e01"
        for action in actions
        for subject in subjects
    ]


def write_msr(path, names=None, **texts):
    """A small zip of the right form; `texts` are for members, by their name."""
    rng = np.random.default_rng(0)
    names = msr_names() if names is None else names
    members = {"files_used.txt": "\n".join(names) + "\n"}
    for index, name in enumerate(names):
        text = msr_text(5 + index, rng, int(name[1:3]))
        members[f"{name}_skeleton3D.txt"] = text
    members.update(
        {f"{name.removesuffix('.txt')}.txt": x for name, x in texts.items()}
    )
    with zipfile.ZipFile(path, "w") as file:
        for name, text in members.items():
            if text is not None:
                file.writestr(name, text)
    return str(path)


def ntu_text(frames):
    """Frames are lists of pairs: the number of a body, its joints (25, 3)."""
    lines = [len(frames)]
    for bodies in frames:
        lines.append(len(bodies))
        for body, joints in bodies:
            lines += [f"{body} 0 1 1 1 1 0 -0.2 0.3 2", 25]
            rest = " 285.9 212.2 1036.7 519.6 -0.2 0.1 0.9 0.02 2"
            lines += [" ".join(map(str, joint)) + rest for joint in joints]
    return "".join(f"{line}\n" for line in lines)


def ntu_frames(count=4, bodies=("72057594037931691",), seed=0):
    """Each body goes farther from frame to frame than the one before it."""
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(len(bodies), 25, 3)).round(3)
    return [
        [
            (body, (start[index] + 0.1 * (index + 1) * frame).round(3))
            for index, body in enumerate(bodies)
        ]
        for frame in range(count)
    ]


def write_ntu(folder, names=(NAME,)):
    folder.mkdir(exist_ok=True)
    for index, name in enumerate(names):
        text = ntu_text(ntu_frames(3 + index, seed=index))
        (folder / f"{name}.skeleton").write_text(text)
    return folder


def turned(joints, angle):
    cos, sin = np.cos(angle), np.sin(angle)
    return joints @ np.array([[cos, 0, sin], [0, 1, 0], [-sin, 0, cos]])


def bodies(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_load_msr(tmp_path):
    names = ["a03_s05_e02", "a20_s10_e01"]
    text = msr_text(3, np.random.default_rng(1))
    path = write_msr(tmp_path / "msr.zip", names, a03_s05_e02_skeleton3D=text)
    first, second = skeletons.load_msr(path)
    assert (first.name, first.label, first.subject) == (names[0], 2, 5)
    assert (second.label, second.subject) == (19, 10)
    joints = np.array(text.split(), float).reshape(3, 1, 20, 4)[..., :3]
    np.testing.assert_allclose(first.joints, joints, rtol=1e-6)


BAD_LINE = "1 2 3 4\n" * 4 + "{}\n" + "1 2 3 4\n" * 15
MEMBER = "a01_s02_e01_skeleton3D"


@pytest.mark.parametrize(
    "texts, words",
    [
        ({"files_used": None}, ["files_used.txt", "missing"]),
        ({"files_used": ""}, ["files_used.txt", "got none"]),
        ({"files_used": "what"}, ["files_used.txt", "aAA_sSS_eEE", "what"]),
        ({"files_used": "a21_s01_e01"}, ["1 to 20", "21"]),
        ({MEMBER: None}, [f"{MEMBER}.txt", "missing"]),
        ({MEMBER: ""}, [MEMBER, "20 lines", "0 lines"]),
        ({MEMBER: "1 2 3 4\n" * 19}, [MEMBER, "20 lines", "19 lines"]),
        ({MEMBER: BAD_LINE.format("1 2 3")}, [MEMBER, "4 finite", "line 5"]),
        ({MEMBER: BAD_LINE.format("1 2 3 4 5")}, ["line 5", "'1 2 3 4 5'"]),
        ({MEMBER: BAD_LINE.format("1 2 x 4")}, ["line 5", "'1 2 x 4'"]),
        ({MEMBER: BAD_LINE.format("1 nan 3 4")}, ["line 5", "nan"]),
        ({MEMBER: "1 2\n3 4 5 6 7 8\n" * 10}, ["line 1", "'1 2'"]),
        ({MEMBER: "0 0 0 1\n" * 20}, [MEMBER, "skeleton", "none"]),
        ({MEMBER: b"\xff\xfe"}, [MEMBER, "decode"]),
    ],
)
def test_broken_msr_is_one_line(texts, words, tmp_path, capsys):
    path = write_msr(tmp_path / "msr.zip", **texts)
    argv = ["--data", path, "--out", tmp_path / "out"]
    refused(example, argv, capsys, "msr.zip", *words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "subjects, argv, words",
    [
        ((1, 3), [], ["testing", "got none"]),
        ((2, 4), [], ["training", "got none"]),
        ((1, 2), ["--hold-out", 3], ["--hold-out", "got none"]),
        ((1, 2), ["--hold-out", 1], ["training", "got none"]),
        # It is not one of those for training.
        ((1, 2, 3, 4), ["--hold-out", 2], ["--hold-out", "got 2"]),
    ],
)
def test_an_empty_part(subjects, argv, words, tmp_path, capsys):
    path = write_msr(tmp_path / "msr.zip", msr_names(subjects=subjects))
    argv = ["--data", path, "--out", tmp_path / "out", *argv]
    refused(example, argv, capsys, *words)
    assert not (tmp_path / "out").exists()


def test_the_two_bodies_that_go_farthest(tmp_path):
    # These numbers are equal in float64 and float32, and must not be merged.
    first = 72057594037931690
    numbers = [str(first + index) for index in range(3)]
    frames = ntu_frames(5, numbers)
    frames[1], frames[3] = frames[1][1:], []
    path = tmp_path / f"{NAME}.skeleton"
    path.write_text(ntu_text(frames))
    joints = skeletons.read_skeleton(path)
    for frame, found in zip(frames, joints, strict=True):
        expected = [body for _, body in frame[:-3:-1]] or np.zeros((2, 25, 3))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_load_ntu(tmp_path):
    names = ["S017C003P008R002A060", NAME, "S001C001P001R001A001"]
    folder = write_ntu(tmp_path / "ntu", names)
    (folder / "notes.txt").write_text("not a sequence")
    missing = tmp_path / "missing.txt"
    missing.write_text(f"The names:\n\n{names[2]}\nS009C009P009R009A009\n")
    sequences = skeletons.load_ntu(folder, missing)
    assert [sequence.name for sequence in sequences] == [NAME, names[0]]
    last = sequences[1]
    assert (last.label, last.subject, last.camera) == (59, 8, 3)
    assert len(skeletons.load_ntu(folder)) == 3
    # The only body comes first.
    first, second = np.moveaxis(sequences[0].joints, 1, 0)
    frames = ntu_frames(4, seed=1)
    expected = [frame[0][1] for frame in frames]
    np.testing.assert_allclose(first, expected, rtol=1e-6)
    assert first.dtype == np.float32 and not second.any()


def test_ntu_splits(tmp_path):
    assert len(NTU.training["subject"]) == 20
    names = [
        f"S001C{camera:03}P{subject:03}R001A001"
        for camera in (1, 2, 3)
        for subject in (1, 3, 38, 40)
    ]
    sequences = skeletons.load_ntu(write_ntu(tmp_path / "ntu", names))
    argv = ["--dataset", "ntu", "--data", "ntu", "--split"]

    def split(*words):
        parts = example.split(sequences, example.parse([*argv, *words]))
        return [{(s.camera, s.subject) for s in part} for part in parts]

    everything = {(c, s) for c in (1, 2, 3) for s in (1, 3, 38, 40)}
    train, test = split("subject")
    assert train == {x for x in everything if x[1] in (1, 38)}
    assert test == everything - train
    train, test = split("view")
    assert train == {x for x in everything if x[0] > 1}
    assert test == everything - train
    train, test = split("subject", "--hold-out", "38")
    assert {s for _, s in train} == {1} and {s for _, s in test} == {38}
    train, test = split("view", "--hold-out", "2")
    assert {c for c, _ in train} == {3} and {c for c, _ in test} == {2}


def changed(line, text):
    """A skeleton file of one frame with another line (counted from 1)."""
    lines = ntu_text(ntu_frames(1)).splitlines()
    lines[line - 1] = text
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["1 lines or more", "got 0"]),
        (ntu_text(ntu_frames(2))[:-300], ["expected 57 lines", "got 53"]),
        ("\n".join(ntu_text(ntu_frames(1)).splitlines()[:9]), ["29", "got 9"]),
        (ntu_text(ntu_frames(1)) + "1\n", ["expected 29 lines", "got 30"]),
        (changed(1, "1.5"), ["count in line 1", "1.5"]),
        (changed(1, "2"), ["expected 30 lines or more", "got 29"]),
        (changed(2, "-1"), ["count in line 2", "-1"]),
        (changed(3, "1 2 3"), ["10 finite", "line 3", "'1 2 3'"]),
        (changed(4, "20"), ["25 joints in line 4", "got 20"]),
        (changed(7, "1 2 3"), ["12 finite", "line 7", "'1 2 3'"]),
        (changed(7, "1 2 inf" + " 0" * 9), ["12 finite", "line 7", "inf"]),
        (ntu_text([[], []]), ["skeleton", "none"]),
        (b"\xff\xff", ["decode"]),
    ],
)
def test_broken_skeleton_is_one_line(text, words, tmp_path, capsys):
    folder = write_ntu(tmp_path / "ntu")
    text = text.encode() if isinstance(text, str) else text
    (folder / f"{NAME}.skeleton").write_bytes(text)
    argv = ["--dataset", "ntu", "--data", folder]
    refused(example, argv, capsys, f"{NAME}.skeleton", *words)


@pytest.mark.parametrize(
    "names, missing, words",
    [
        (None, None, ["expected a folder"]),
        ([], None, [".skeleton files", "none"]),
        ([NAME], NAME, [".skeleton files", "none"]),
        ([NAME], "nothing here", ["--missing", "none"]),
        ([NAME], False, ["--missing", "No such file"]),
        (["what"], None, ["what.skeleton", "SsssCcccPpppRrrrAaaa"]),
        (["S001C001P001R001A061"], None, ["1 to 60", "got 61"]),
        ([NAME], None, ["training", "got none", "1 sequences"]),
    ],
)
def test_broken_folder_is_one_line(names, missing, words, tmp_path, capsys):
    argv = ["--dataset", "ntu", "--data", tmp_path / "ntu"]
    if names is not None:
        write_ntu(tmp_path / "ntu", names)
    if missing is not None:
        argv += ["--missing", tmp_path / "missing.txt"]
    if missing:
        (tmp_path / "missing.txt").write_text(missing)
    refused(example, argv, capsys, *words)


@pytest.mark.parametrize(
    "dataset, shape, angle",
    [(MSR, (7, 1, 20, 3), 0.0), (NTU, (7, 2, 25, 3), 0.7)],
)
def test_normalize_keeps_neither_place_nor_size(dataset, shape, angle):
    joints = bodies(shape)
    x = skeletons.normalize(joints, dataset)
    assert x.shape == shape and x.dtype == np.float32
    same = turned(joints, angle) * 1.3 + [0.2, -0.4, 3.0]
    np.testing.assert_allclose(skeletons.normalize(same, dataset), x, atol=1e-4)
    # What is documented: the hip, the size, and the shoulders.
    assert not x[0, 0, dataset.hip].any()
    spine = np.linalg.norm(x[:, 0, dataset.neck], axis=-1)
    assert np.median(spine) == pytest.approx(1, rel=1e-5)
    if dataset.shoulders:
        right, left = dataset.shoulders
        across = x[0, 0, left] - x[0, 0, right]
        assert across[0] > 0 and abs(across[2]) < 1e-5
    # Everything else stays: distances, and the ways of the hips.
    size = x[0, 0, dataset.neck, 1] / (
        joints[0, 0, dataset.neck, 1] - joints[0, 0, dataset.hip, 1]
    )
    hips = joints[:, :, dataset.hip] - joints[0, 0, dataset.hip]
    np.testing.assert_allclose(
        np.linalg.norm(x[:, :, dataset.hip], axis=-1),
        np.linalg.norm(hips, axis=-1) * size,
        atol=1e-4,
    )
    limbs = [
        np.linalg.norm(y[:, :, 7] - y[:, :, 8], axis=-1) for y in (joints, x)
    ]
    np.testing.assert_allclose(limbs[1], limbs[0] * size, atol=1e-4)


def test_without_shoulders_directions_stay():
    joints = bodies((4, 1, 20, 3))
    a, b = (skeletons.normalize(turned(joints, angle), MSR) for angle in (0, 1))
    np.testing.assert_allclose(turned(a, 1), b, atol=1e-5)


def test_normalize_leaves_out_frames_without_anybody():
    joints = bodies((6, 2, 25, 3))
    joints[[0, 3]] = 0
    joints[4, 1] = 0
    x = skeletons.normalize(joints, NTU)
    assert x.shape == (4, 2, 25, 3)
    assert not x[2, 1].any() and x[2, 0].any()
    np.testing.assert_array_equal(
        x, skeletons.normalize(joints[joints.any(axis=(1, 2, 3))], NTU)
    )


def test_rotation():
    angles = np.array([[0.0, 0.0], [0.3, 0.0], [0.0, 0.5], [0.3, -0.2]])
    matrices = skeletons.rotation(*angles.T)
    assert matrices.shape == (4, 3, 3)
    np.testing.assert_array_equal(matrices[0], np.eye(3))
    for matrix in matrices:
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(matrix) == pytest.approx(1)
    np.testing.assert_allclose([0, 1, 0] @ matrices[1], [0, 1, 0])
    np.testing.assert_allclose([1, 0, 0] @ matrices[2], [1, 0, 0])


@pytest.mark.parametrize("length", [1, 2, 9, 50])
def test_crop(length):
    times = np.arange(length, dtype="float32")
    joints = np.broadcast_to(times[:, None, None, None], (length, 1, 2, 3))
    crops = [
        skeletons.crop(joints, 8, np.random.default_rng(seed), 0.5)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(crops[0], crops[1])
    assert (crops[0] != crops[2]).any() or length == 1
    for x in crops:
        assert x.shape == (8, 1, 2, 3)
        # Joints say where they are from: in order, and from half of it or more.
        x = x[:, 0, 0, 0]
        assert (np.diff(x) >= 0).all()
        assert 0 <= x[0] and x[-1] <= length - 1
        assert x[-1] - x[0] >= 0.5 * (length - 1) * 6 / 8


def test_augment():
    x = bodies((3, 4, 2, 20, 3)).astype("float32")

    def augment(*options):
        return skeletons.augment(x, np.random.default_rng(1), *options)

    np.testing.assert_allclose(augment(0, 0, 0), x, atol=1e-6)
    y = augment(0.3, 0, 0)
    assert y.dtype == np.float32
    np.testing.assert_allclose(
        np.linalg.norm(y, axis=-1), np.linalg.norm(x, axis=-1), atol=1e-5
    )
    ratio = augment(0, 0.1, 0) / x
    assert 0.9 <= ratio.min() < ratio.max() <= 1.1
    # One change for all frames and joints of a sequence.
    np.testing.assert_allclose(ratio, ratio[:, :1, :1, :1] + 0 * x, rtol=1e-4)
    assert np.std(augment(0, 0, 0.02) - x) == pytest.approx(0.02, rel=0.1)
    np.testing.assert_array_equal(augment(), augment())


@pytest.mark.parametrize("dataset", [MSR, NTU])
def test_every_joint_leads_to_the_hip(dataset):
    assert dataset.parents[dataset.hip] == dataset.hip
    for joint in range(len(dataset.parents)):
        way = [joint]
        while way[-1] != dataset.hip:
            way.append(dataset.parents[way[-1]])
            assert len(way) < 10


def test_features():
    x = bodies((2, 7, 1, 20, 3))
    parts = np.split(skeletons.features(x, MSR), 4, axis=-1)
    x_, one, five, bones = (part.reshape(x.shape) for part in parts)
    np.testing.assert_array_equal(x_, x)
    np.testing.assert_array_equal(one[:, 1:], np.diff(x, axis=1))
    np.testing.assert_array_equal(five[:, 5:], x[:, 5:] - x[:, :-5])
    np.testing.assert_array_equal(five[:, :5], x[:, :5] - x[:, :1])
    # Upper and lower arm; a joint beside the hip is relative to it already.
    for joint, bone in ((9, x[..., 9, :] - x[..., 7, :]), (4, x[..., 4, :])):
        bone /= np.linalg.norm(bone, axis=-1, keepdims=True)
        np.testing.assert_allclose(bones[..., joint, :], bone)
    assert not bones[..., MSR.hip, :].any()


def test_confusion():
    matrix = example.confusion(
        np.array([0, 1, 1, 2]), np.array([0, 2, 2, 1]), 3
    )
    np.testing.assert_array_equal(matrix, [[1, 0, 0], [0, 0, 2], [0, 1, 0]])


def parsed(*argv):
    return example.parse(["--data", "none", *argv])


def test_crops_are_averaged():
    joints = [bodies((length, 1, 20, 3)) for length in (9, 12, 7)]
    args = parsed("--frames", "6", "--batch-size", "2", "--test-crops", "3")
    shape = (6, 4 * 60)
    model = keras.Sequential(
        [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    found = example.probabilities(model, joints, args)
    np.testing.assert_array_equal(
        found, example.probabilities(model, joints, args)
    )
    expected = np.zeros((3, 4))
    for number in range(3):
        for step, rows in enumerate([[0, 1], [2, 0]]):
            rng = np.random.default_rng([args.seed, 1, number, step])
            x = example.inputs(joints, rows, args, rng)
            logits = np.exp(model.predict_on_batch(x))
            logits /= logits.sum(axis=1, keepdims=True)
            expected[rows[: 3 - 2 * step]] += logits[: 3 - 2 * step] / 3
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(found.sum(axis=1), 1)


SMALL = "--units 4 --layers 2 --frames 5 --passes 2 --batch-size 4"
SMALL += " --test-crops 2 --blocks 1 --growth 2 --block-sizes 2 1"
SMALL = SMALL.split()


@pytest.mark.parametrize(
    "model", ["stacked", "residual", "dense", "lstm", "gru", "rnn"]
)
def test_networks(model):
    args = parsed("--model", model, *SMALL)
    network = example.network(args, 7)
    assert network.input_shape == (None, 5, 7)
    assert network.output_shape == (None, 20)
    # What the layers give is averaged over the frames.
    x = bodies((2, 5, 7))
    sequences = keras.Model(network.input, network.layers[-2].input)(x)
    logits = network.layers[-1](keras.ops.mean(sequences, axis=1))
    np.testing.assert_allclose(network(x), logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model, count",
    [("stacked", 1430588), ("residual", 2751548), ("dense", 2314428)],
)
def test_networks_for_ntu_have_the_published_size(model, count):
    args = parsed("--dataset", "ntu", "--model", model)
    # Published are 1.43, 2.75 and 2.31 millions, with positions alone.
    weights = example.network(args, 150).trainable_weights
    assert sum(np.prod(w.shape) for w in weights) == count


def test_msr_leaves_its_results(tmp_path, capsys):
    path = write_msr(tmp_path / "msr.zip")
    out = tmp_path / "out"
    main(example, ["--data", path, "--out", out, *SMALL, "--epochs", 1])
    found = result(out)
    assert found["steps"] == 2  # four sequences, twice, four in a batch
    assert found["metrics"]["sequences"] == 4
    # Of four sequences
    assert found["metrics"]["test_accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    for name in ("confusion.png", "curve.png"):
        assert (out / name).stat().st_size > 1000
    capsys.readouterr()
    main(example, ["--data", path, "--evaluate", out])
    assert json.loads(capsys.readouterr().out) == found["metrics"]


def test_ntu_leaves_its_results(tmp_path):
    names = [
        f"S001C00{camera}P00{subject}R001A00{action}"
        for camera in (1, 2)
        for subject in (1, 3)
        for action in (1, 2)
    ]
    folder, out = write_ntu(tmp_path / "ntu", names), tmp_path / "out"
    argv = ["--dataset", "ntu", "--data", folder, "--split", "view", *SMALL]
    main(example, [*argv, "--model", "rnn", "--epochs", 1, "--out", out])
    assert result(out)["arguments"]["split"] == "view"
    assert result(out)["metrics"]["sequences"] == 4
    assert (out / "confusion.png").stat().st_size > 1000


def test_hold_out_and_resume(tmp_path, monkeypatch):
    argv = ["--data", write_msr(tmp_path / "msr.zip"), *SMALL, "--epochs", 2]
    argv += ["--model", "rnn", "--hold-out", 3]
    metrics = result(resumed(example, argv, tmp_path, monkeypatch))["metrics"]
    assert "test_accuracy" not in metrics and metrics["sequences"] == 2


def test_defaults_depend_on_the_dataset():
    msr, ntu = parsed(), parsed("--dataset", "ntu", "--layers", "2")
    for name, value in example.DEFAULTS["msr"].items():
        assert getattr(msr, name) == value
    assert (ntu.layers, ntu.units, ntu.frames) == (2, 512, 20)


def test_real_msr():
    path = pathlib.Path(__file__).parents[2] / "shared/data/msr_action3d.zip"
    if not path.exists():
        pytest.skip(f"needs the MSR Action3D file {path.name}")
    sequences = skeletons.load_msr(path)
    assert len(sequences) == 557
    train, test = example.split(sequences, parsed())
    assert len(train) == 284 and len(test) == 273
    for part in (train, test):
        assert {sequence.label for sequence in part} == set(range(20))
    lengths = [len(sequence.joints) for sequence in sequences]
    assert (min(lengths), max(lengths)) == (13, 76)
    for sequence in sequences:
        x = skeletons.normalize(sequence.joints, MSR)
        # Some frames of some sequences have no skeleton.
        assert 0 < len(x) <= len(sequence.joints)
        assert np.isfinite(x).all() and abs(x).max() < 20
