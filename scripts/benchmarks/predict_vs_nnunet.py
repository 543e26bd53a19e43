"""How long nnU-Net and medseg take to predict the same scans with the same weights: whole commands, in turn, with mirroring.

    bash scripts/benchmarks/nnunet.sh
    .venv/bin/python scripts/benchmarks/predict_vs_nnunet.py --kinds hippocampus ct --out result.json

``hippocampus`` is nnU-Net's own plan and network for ten cases of a Decathlon folder, ``ct`` one phantom of 512×512×120 voxels
of 0.8×0.8×2.5 mm with four organs, windows of 128×128×96 at 2.5 mm and six stages of 32 to 320 features. nnU-Net trains both for
some steps, or ``--model`` names a model folder that it trained; ``medseg import`` makes ours of it. Step size, mirroring and
windows are nnU-Net's defaults, which are medseg's too. medseg measures its runtimes anew in every run and writes overlays and
report, as it does unless told otherwise; nnU-Net writes masks. Peak memory is that of all processes together (PSS, Linux only).
A ratio counts only if the masks of every run agree.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from import_vs_nnunet import compare, copy_cases, run, train
from preprocess_vs_nnunet import NAME, NNUNET, ROOT, Measured, convert, machine, median, nnunet_version, watched

from medseg.testing.phantoms import LABELS, Body, make_body
from medseg.volume import Geometry

AGREE = 0.995
"""The least Dice of any label of any case at which a run counts."""
AIMS = {"hippocampus": {"wall_s": 4.0}, "ct": {"wall_s": 6.0, "peak_mb": 2.0}}
CONFIGURATIONS = {"hippocampus": "3d_fullres", "ct": "ct"}
CT_PATCH, TRAINED_PATCH = [96, 128, 128], [48, 64, 64]
"""Of the model, and on what it is trained: weights do not depend on it. nnU-Net's axes (k, j, i)."""
CT_MM = (0.8, 0.8, 2.5)
AIR, SOFT, NOISE = -1000, 40, 10
HU = {
    **{"fat": -100, "muscle": 55, "lungs": -800, "heart": 150, "spine": 400, "cord": 30, "aorta": 220, "gas": -900},
    **{"gallbladder": 5, "liver": 110, "kidneys": 190, "spleen": 145, "lesions": 70},
}
"""So far apart that a network learns them in minutes; what is not named is soft tissue."""


def main() -> None:
    arguments = _arguments()
    if not (NNUNET / "nnUNetv2_predict").exists():
        sys.exit("nnU-Net is not installed: run `bash scripts/benchmarks/nnunet.sh` first")
    load = os.getloadavg()
    given = dict(word.split("=", 1) for word in arguments.model)
    prepared = {kind: prepare(kind, arguments, given.get(kind)) for kind in arguments.kinds}
    result: dict[str, Any] = {
        "what": f"whole commands, {arguments.threads} threads, {arguments.n} runs in turn, mirroring on both sides",
        "command": " ".join(["python", "scripts/benchmarks/predict_vs_nnunet.py", *sys.argv[1:]]),
        "machine": machine(load),
        "versions": {
            "nnU-Net": nnunet_version(),
            "torch of nnU-Net": nnunet_version("torch"),
            **{name: version(name) for name in ("medseg", "torch", "openvino")},
            "python": platform.python_version(),
        },
        "agree": AGREE,
        "kinds": {kind: measure(kind, *prepared[kind], arguments) for kind in arguments.kinds},
    }
    show(result)
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def prepare(kind: str, arguments: argparse.Namespace, model: str | None) -> tuple[Path, Path, Path]:
    """nnU-Net's model folder, ours, and the scans; what is trained stays in the working folder."""
    work = arguments.work / kind
    work.mkdir(parents=True, exist_ok=True)
    if kind == "ct":
        scans = ct_scans(work / f"scans_{'x'.join(map(str, arguments.shape))}", arguments.shape)
    else:
        scans = copy_cases(arguments.data, work / "scans", arguments.training, arguments.cases)
    theirs = Path(model) if model else trained(kind, work, arguments)
    ours = work / "medseg_model"
    command = [sys.executable, "-m", "medseg", "import", "from=nnunet", f"source={theirs}", f"output={ours}"]
    run([*command, "overwrite=true"], work)
    return theirs, ours, scans


def trained(kind: str, work: Path, arguments: argparse.Namespace) -> Path:
    """A model folder that nnU-Net trains, once for a working folder."""
    base = work / "preprocessed" / NAME
    if not (base / "prepared").exists():
        for name in ("raw", "preprocessed", "results"):
            shutil.rmtree(work / name, ignore_errors=True)
        if kind == "ct":
            ct_cases(work / "raw" / NAME, 6)
        else:
            convert(arguments.data, work / "raw" / NAME, arguments.training)
        plan = [NNUNET / "nnUNetv2_plan_and_preprocess", "-d", str(int(NAME[7:10])), "-npfp", "1", "--no_pp"]
        run(plan, work)
        if kind == "ct":
            change_plans(base / "nnUNetPlans.json", ct_configuration)
        run([NNUNET / "nnUNetv2_preprocess", "-d", "4", "-c", CONFIGURATIONS[kind], "-np", "1"], work)
        (base / "prepared").touch()
    model = train(work, CONFIGURATIONS[kind], arguments.steps)
    if kind == "ct":
        change_plans(model / "plans.json", lambda plans: plans["configurations"]["ct"].update(patch_size=CT_PATCH))
    return model


def change_plans(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    plans = json.loads(path.read_text(encoding="utf-8"))
    change(plans)
    path.write_text(json.dumps(plans, indent=1), encoding="utf-8")


def ct_configuration(plans: dict[str, Any]) -> None:
    """A network as nnU-Net plans it for abdominal CT, trained on smaller patches than it predicts."""
    full = plans["configurations"]["3d_fullres"]
    architecture = json.loads(json.dumps(full["architecture"]))
    stages = 6
    architecture["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": [min(32 * 2**stage, 320) for stage in range(stages)],
        "kernel_sizes": [[3, 3, 3]] * stages,
        "strides": [[1, 1, 1], *[[2, 2, 2]] * (stages - 2), [1, 2, 2]],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    changes = {"spacing": [2.5] * 3, "patch_size": TRAINED_PATCH, "batch_size": 2, "data_identifier": "ct"}
    plans["configurations"]["ct"] = full | changes | {"architecture": architecture}


def ct_phantom(
    index: int, shape: tuple[int, ...], spacing: tuple[float, ...]
) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """One of medseg's bodies, twice as large, in HU, and its labels."""
    rng = np.random.default_rng(index)
    body = make_body(rng)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    half = np.diag([0.5, 0.5, 0.5, 1.0]) @ affine
    numbered = Body(tuple(replace(part, label=number) for number, part in enumerate(body.structures, start=1)))
    parts = numbered.mask(Geometry(shape, half))
    hu = np.array([AIR, *(HU.get(part.name, SOFT) for part in body.structures)], np.float32)
    labels = np.array([0, *(part.label for part in body.structures)], np.uint8)
    seen = hu[parts] + NOISE * rng.standard_normal(shape, np.float32)
    return nib.Nifti1Image(seen.round().astype(np.int16), affine), nib.Nifti1Image(labels[parts], affine)


def ct_scans(folder: Path, shape: tuple[int, ...]) -> Path:
    """One scan to predict, as nnU-Net wants its input."""
    path = folder / "ct_100_0000.nii.gz"
    if not path.exists():
        folder.mkdir()
        nib.save(ct_phantom(100, shape, CT_MM)[0], path)
    return folder


def ct_cases(raw: Path, count: int) -> None:
    """Coarser phantoms of the same kind to train on, in nnU-Net's raw layout."""
    for name in ("imagesTr", "labelsTr"):
        (raw / name).mkdir(parents=True)
    for index in range(count):
        image, labels = ct_phantom(index, (120, 120, 80), (3.2, 3.2, 3.2))
        nib.save(image, raw / "imagesTr" / f"ct_{index:03d}_0000.nii.gz")
        nib.save(labels, raw / "labelsTr" / f"ct_{index:03d}.nii.gz")
    labels_of = {"background": 0, **{name: value for value, name in LABELS.names.items()}}
    body = {"channel_names": {"0": "CT"}, "labels": labels_of, "numTraining": count, "file_ending": ".nii.gz"}
    (raw / "dataset.json").write_text(json.dumps(body), encoding="utf-8")


def measure(kind: str, theirs: Path, ours: Path, scans: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both commands in turn; medians, ratios, and how far the masks agree."""
    runs: dict[str, list[Measured]] = {"nnU-Net": [], "medseg": []}
    dice: list[float] = []
    runtime = ""
    for number in range(arguments.n):
        with tempfile.TemporaryDirectory(prefix=f"medseg-{kind}-") as name:
            out = {system: Path(name) / system for system in runs}
            for system in list(runs)[:: 1 if number % 2 == 0 else -1]:
                source = theirs if system == "nnU-Net" else ours
                command, environment = command_of(system, source, scans, out[system], arguments)
                runs[system].append(watched(command, environment, Path(name) / f"{system}.log"))
                sys.stderr.write(f"{kind} {number + 1}/{arguments.n} {system}: {runs[system][-1].wall_s:.1f} s\n")
            rows = compare(kind, out["nnU-Net"], out["medseg"])
            dice.append(min(row["dice"] for row in rows))
            noted = json.loads((out["medseg"] / "manifest.json").read_text(encoding="utf-8"))
            runtime = json.dumps(noted.get("runtimes", {}))
    medians = {system: median(measured) for system, measured in runs.items()}
    return {
        "scans": {path.name: list(nib.load(path).shape) for path in sorted(scans.glob("*.nii.gz"))},
        "median": medians,
        "nnunet_over_medseg": {
            key: round(medians["nnU-Net"][key] / max(medians["medseg"][key], 1e-9), 2) for key in medians["medseg"]
        },
        "aim": AIMS[kind],
        "least_dice": min(dice),
        "median_of_least_dice": statistics.median(dice),
        "counts": min(dice) >= AGREE,
        "runtime": runtime,
        "runs": {system: [asdict(one) for one in measured] for system, measured in runs.items()},
    }


def command_of(
    system: str, model: Path, scans: Path, out: Path, arguments: argparse.Namespace
) -> tuple[list[str], dict[str, str]]:
    """What is run, and in which environment."""
    environment = dict(os.environ) | {"OMP_NUM_THREADS": str(arguments.threads)}
    if system == "medseg":
        command = [sys.executable, "-m", "medseg", "predict", f"model={model}", f"input={scans}", f"output={out}"]
        return [*command, f"runtime.cache={out}_cache"], environment
    environment.pop("PYTHONPATH", None)
    for name in ("raw", "preprocessed", "results"):
        environment[f"nnUNet_{name}"] = str(out.with_name(f"nnunet_{name}"))
    # By its folder, as nnUNetv2_predict_from_modelfolder is the same command for a model that lies anywhere.
    command = [str(NNUNET / "nnUNetv2_predict_from_modelfolder"), "-m", str(model), "-f", "0", "-i", str(scans)]
    command += ["-o", str(out), "-device", "cpu"]
    if arguments.processes:
        command += ["-npp", str(arguments.processes), "-nps", str(arguments.processes)]
    return command, environment


def show(result: Mapping[str, Any]) -> None:
    machine, versions = result["machine"], result["versions"]
    print(f"{result['what']}\n{result['command']}")
    print(f"{machine['cores']} cores, {machine['processor']}, load before {machine['load_before']}")
    print(", ".join(f"{name} {number}" for name, number in versions.items()))
    for kind, found in result["kinds"].items():
        verdict = "masks agree" if found["counts"] else f"DOES NOT COUNT: masks differ (aim {result['agree']})"
        print(f"\n{kind}: {len(found['scans'])} scans, least Dice {found['least_dice']:.5f}, {verdict}")
        print(f"{'median':<12}{'wall s':>10}{'cpu s':>10}{'peak MB':>10}")
        for system, row in [*found["median"].items(), ("ratio", found["nnunet_over_medseg"])]:
            print(f"{system:<12}{row['wall_s']:>10.2f}{row['cpu_s']:>10.2f}{row['peak_mb']:>10.2f}")
        for key, aim in found["aim"].items():
            reached = found["nnunet_over_medseg"][key]
            print(f"{key}: {reached:.2f} times, aim {aim:g}: {'reached' if reached >= aim else 'falls short'}")
        print(f"runtime: {found['runtime']}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT.parent / "shared" / "data" / "hippocampus"
    work = Path(tempfile.gettempdir()) / "medseg-predict"
    parser.add_argument("--kinds", nargs="+", choices=list(AIMS), default=list(AIMS))
    parser.add_argument(
        "--model", action="append", default=[], metavar="KIND=FOLDER", help="trained by nnU-Net already"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: one a core")
    parser.add_argument("-n", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--processes", type=int, help="of nnU-Net, for reading and for writing (default: its own, 3)")
    parser.add_argument("--shape", type=_shape, default=(512, 512, 120), help="of the ct scan (default: 512,512,120)")
    parser.add_argument(
        "--data", type=Path, default=default, help="an MSD folder (default: ../shared/data/hippocampus)"
    )
    parser.add_argument("--work", type=Path, default=work, help=f"what is trained stays there (default: {work})")
    parser.add_argument("--training", type=int, default=20, help="hippocampus cases to train on (default 20)")
    parser.add_argument("--cases", type=int, default=10, help="hippocampus cases to predict (default 10)")
    parser.add_argument("--steps", type=int, default=250, help="training steps (default 250)")
    parser.add_argument("--out", type=Path, help="write the result there as JSON, too")
    return parser.parse_args()


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


if __name__ == "__main__":
    main()
