"""The example on skeletons: its data sets, crops, network, and results."""

import itertools
import json
import pathlib
import zipfile

import keras
import numpy as np
import pytest

import action_recognition as example
import arguments
import skeletons
from runs import main, refused, result, resumed
from skeletons import MSR, NTU

NAME = "S001C002P003R001A004"


def msr_text(frames, rng):
    joints = rng.normal(size=(20 * frames, 4)).round(3)
    return "".join("{} {} {} {}\n".format(*joint) for joint in joints)


def write_msr(path, names=None, **texts):
    """A small zip of the right form; `texts` are for members, by their name."""
    rng = np.random.default_rng(0)
    if names is None:
        names = [f"a0{a}_s0{s}_e01" for a in (1, 2) for s in (1, 2, 3, 4)]
    members = {"files_used": "\n".join(names)}
    for index, name in enumerate(names):
        members[f"{name}_skeleton3D"] = msr_text(5 + index, rng)
    with zipfile.ZipFile(path, "w") as file:
        for name, text in {**members, **texts}.items():
            if text is not None:
                file.writestr(f"{name}.txt", text)
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


def write_ntu(folder, names):
    folder.mkdir()
    for index, name in enumerate(names):
        text = ntu_text(ntu_frames(3 + index, seed=index))
        (folder / f"{name}.skeleton").write_text(text)
    return folder


def bodies(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def parsed(*argv):
    return example.parse(["--data", "none", *argv])


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
        ({MEMBER: BAD_LINE.format("1 2 x 4")}, ["line 5", "'1 2 x 4'"]),
        ({MEMBER: BAD_LINE.format("1 nan 3 4")}, ["line 5", "nan"]),
        ({MEMBER: "1 2\n3 4 5 6 7 8\n" * 10}, ["line 1", "'1 2'"]),
        ({MEMBER: "0 0 0 1\n" * 20}, [MEMBER, "skeleton", "none"]),
        ({MEMBER: b"\xff\xfe"}, [MEMBER, "decode"]),
        ({"files_used": "a01_s01_e01"}, ["testing", "got none"]),
        ({"files_used": "a01_s02_e01"}, ["training", "got none"]),
    ],
)
def test_broken_msr_is_one_line(texts, words, tmp_path, capsys):
    path = write_msr(tmp_path / "msr.zip", **texts)
    argv = ["--data", path, "--out", tmp_path / "out"]
    refused(example, argv, capsys, "msr.zip", *words)
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
    with pytest.raises(arguments.UserError, match="expected a folder"):
        skeletons.load_ntu(missing)


def test_ntu_splits():
    assert len(NTU.training["subject"]) == 20
    cameras, subjects = {1, 2, 3}, {1, 3, 38, 40}
    sequences = [
        skeletons.Sequence("", None, 0, subject, camera)
        for camera, subject in itertools.product(cameras, subjects)
    ]
    for words, *expected in (
        (["subject"], (cameras, {1, 38}), (cameras, {3, 40})),
        (["view"], ({2, 3}, subjects), ({1}, subjects)),
        (["subject", "--hold-out", "38"], (cameras, {1}), (cameras, {38})),
        (["view", "--hold-out", "2"], ({3}, subjects), ({2}, subjects)),
    ):
        args = parsed("--dataset", "ntu", "--split", *words)
        parts = example.split(sequences, args)
        for part, chosen in zip(parts, expected, strict=True):
            found = {(x.camera, x.subject) for x in part}
            assert found == {*itertools.product(*chosen)}
    for number, message in (
        (2, "expected sequences for --hold-out, got none"),
        (3, "--hold-out must be one of .* got 3"),
    ):
        args = parsed("--dataset", "ntu", "--hold-out", str(number))
        with pytest.raises(arguments.UserError, match=message):
            example.split(sequences, args)


def changed(line, text):
    """A skeleton file of one frame with another line (counted from 1)."""
    lines = ntu_text(ntu_frames(1)).splitlines()
    lines[line - 1] = text
    return "\n".join(lines)


ONE = ntu_text(ntu_frames(1))
FILE = f"{NAME}.skeleton"


@pytest.mark.parametrize(
    "files, words",
    [
        ({}, ["expected .skeleton files", "none"]),
        ({FILE: ONE, "missing.txt": NAME}, ["expected .skeleton files"]),
        ({FILE: ONE, "missing.txt": "nothing here"}, ["--missing", "none"]),
        ({FILE: ONE, "missing.txt": None}, ["--missing", "No such file"]),
        ({"what.skeleton": ONE}, ["what.skeleton", "SsssCcccPpppRrrrAaaa"]),
        ({"S001C001P001R001A061.skeleton": ONE}, ["1 to 60", "got 61"]),
        ({FILE: ""}, [FILE, "1 lines or more", "got 0"]),
        ({FILE: ntu_text(ntu_frames(2))[:-300]}, ["57 lines", "got 53"]),
        ({FILE: ONE + "1\n"}, [FILE, "expected 29 lines", "got 30"]),
        ({FILE: changed(1, "1.5")}, [FILE, "count in line 1", "1.5"]),
        ({FILE: changed(1, "2")}, ["expected 30 lines or more", "got 29"]),
        ({FILE: changed(2, "-1")}, ["count in line 2", "-1"]),
        ({FILE: changed(3, "1 2 3")}, [FILE, "10 finite", "line 3"]),
        ({FILE: changed(4, "20")}, [FILE, "25 joints in line 4", "got 20"]),
        ({FILE: changed(7, "1 2 3")}, ["12 finite", "line 7", "'1 2 3'"]),
        ({FILE: ntu_text([[], []])}, [FILE, "skeleton", "none"]),
    ],
)
def test_broken_ntu_is_one_line(files, words, tmp_path, capsys):
    for name, text in files.items():
        if text is not None:
            (tmp_path / name).write_text(text)
    argv = ["--dataset", "ntu", "--data", tmp_path]
    if "missing.txt" in files:
        argv += ["--missing", tmp_path / "missing.txt"]
    refused(example, argv, capsys, *words)


def normalized(joints, dataset):
    """What `normalize` promises, body by body."""
    frames = [frame for frame in joints if frame.any()]
    first = [frame[0] for frame in frames if frame[0].any()]
    spines = [body[dataset.neck] - body[dataset.hip] for body in first]
    size = np.median(np.linalg.norm(spines, axis=1))
    across = np.array([1.0, 0.0, 0.0])
    if dataset.shoulders:
        right, left = dataset.shoulders
        across = first[0][left] - first[0][right]
    x, _, z = across / np.hypot(across[0], across[2])
    turn = np.array([[x, 0, -z], [0, 1, 0], [z, 0, x]])
    result = np.zeros((len(frames), *joints.shape[1:]))
    for frame, moved in zip(frames, result, strict=True):
        for person, body in enumerate(frame):
            if body.any():
                place = body - body[dataset.hip]
                place[dataset.hip] = body[dataset.hip] - first[0][dataset.hip]
                moved[person] = place @ turn / size
    return result


@pytest.mark.parametrize(
    "dataset, shape", [(MSR, (9, 1, 20, 3)), (NTU, (9, 2, 25, 3))]
)
def test_normalize_equals_a_loop(dataset, shape):
    joints = bodies(shape)
    joints[[0, 3]] = 0
    joints[1, :-1] = joints[5, 1:] = 0  # one of two persons
    x = skeletons.normalize(joints, dataset)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, normalized(joints, dataset), atol=1e-5)


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
    # About which axes it turns
    rotation = skeletons.rotation
    np.testing.assert_allclose([0, 1, 0] @ rotation(0.3, 0.0), [0, 1, 0])
    np.testing.assert_allclose([1, 0, 0] @ rotation(0.0, 0.3), [1, 0, 0])


@pytest.mark.parametrize("dataset", [MSR, NTU])
def test_every_joint_leads_to_the_hip(dataset):
    joints = np.arange(len(dataset.parents))
    for _ in range(10):
        joints = np.take(dataset.parents, joints)
    assert (joints == dataset.hip).all()


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


def test_crops_are_averaged():
    joints = [bodies((length, 1, 20, 3)) for length in (9, 12, 7)]
    args = parsed("--frames", "6", "--batch-size", "2", "--test-crops", "3")
    shape = (6, 4 * 60)
    model = keras.Sequential(
        [keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(4)]
    )
    found = example.probabilities(model, joints, args)
    expected = np.zeros((3, 4))
    for number in range(3):
        for step, rows in enumerate([[0, 1], [2, 0]]):
            rng = np.random.default_rng([args.seed, 1, number, step])
            x = example.inputs(joints, rows, args, rng)
            logits = np.exp(model.predict_on_batch(x))
            logits /= logits.sum(axis=1, keepdims=True)
            expected[rows[: 3 - 2 * step]] += logits[: 3 - 2 * step] / 3
    np.testing.assert_allclose(found, expected, rtol=1e-5)


SMALL = "--units 4 --layers 2 --frames 5 --passes 2 --batch-size 4"
SMALL += " --test-crops 2 --blocks 1 --growth 2 --block-sizes 2 1"
SMALL = SMALL.split()


@pytest.mark.parametrize("model", ["stacked", "residual", "dense", "lstm"])
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


def test_msr_leaves_its_results(tmp_path, monkeypatch):
    argv = ["--data", write_msr(tmp_path / "msr.zip"), *SMALL, "--epochs", 2]
    argv += ["--model", "rnn"]
    out = resumed(example, argv, tmp_path, monkeypatch)
    found = result(out)
    assert found["steps"] == 4  # four sequences, twice, four in a batch
    assert found["metrics"]["sequences"] == 4
    assert found["metrics"]["test_accuracy"] in (0, 0.25, 0.5, 0.75, 1)
    for name in ("confusion.png", "curve.png"):
        assert (out / name).stat().st_size > 1000


def test_ntu_with_cameras_held_out(tmp_path, capsys):
    names = [
        f"S001C00{camera}P00{subject}R001A00{action}"
        for camera in (1, 2, 3)
        for subject in (1, 3)
        for action in (1, 2)
    ]
    folder, out = write_ntu(tmp_path / "ntu", names), tmp_path / "out"
    argv = ["--dataset", "ntu", "--data", folder, "--split", "view", *SMALL]
    main(example, [*argv, "--hold-out", 3, "--epochs", 1, "--out", out])
    metrics = result(out)["metrics"]
    assert {*metrics} == {"held_out_accuracy", "sequences"}
    assert metrics["sequences"] == 4
    capsys.readouterr()
    main(example, ["--data", folder, "--evaluate", out])
    assert json.loads(capsys.readouterr().out) == metrics


def test_defaults_depend_on_the_dataset():
    args = parsed("--dataset", "ntu", "--layers", "2")
    assert (args.layers, args.units, args.frames) == (2, 512, 20)
    assert parsed().units == 256


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
