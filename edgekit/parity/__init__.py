"""`edgekit compare A B`: are these two the same model, and if not, where do they part?

    result.py    what a comparison found, as data and JSON
    runners.py   a side: anything that can be run, opened by what its path is
    graphs.py    sides of one graph: ONNX, OpenVINO IR, TFLite
    flows.py     sides of a whole flow: a recipe's float model, a bundle
    native.py    sides of edgekit's own engine: a weight file, whole or its network alone
    recorded.py  outputs that somebody wrote down
    samples.py   what both sides are fed, one sample in memory at a time
    pairing.py   which output belongs to which, by exact name or a mapping file
    measure.py   errors, accumulated sample by sample; when they are within tolerance
    tolerance.py what INT8 may cost, measured on the models and data at hand
    stream.py    state carried over chunks
    conditions.py  several sides, slices and harder data: target × condition
    release.py   what changed between two bundles
    bisect.py    the error that each layer introduces, against the one that it inherits
    matching.py  which inner tensor of B is which of A
    inside.py    graphs with their inner tensors in reach; inside_openvino.py: those of an IR
    surgery.py   ONNX graphs cut open, rounded as another one is, or reduced to a part
    repro.py     the smallest graph that shows an error, as a folder
    check.py     `compare`, which puts these together
    golden.py    `edgekit verify`: one bundle against what it was delivered with
    gaps.py      what a comparison does not show
    arguments.py the command line's spellings
    show.py      the terminal's table and JUnit XML
    html.py      the report, one self-contained page
    pictures.py  waveforms, spectrograms, maps and frames in it
"""
