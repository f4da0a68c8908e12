"""The commands, one module each. A command reads stores, calls the method and writes stores.

Stages, in order:

1. `superpixels`: SLIC of every image -> ``superpixels.h5``
2. `align`: CMPA, two heads that align image and text features -> ``cmpa.safetensors``
3. `cams`: class activation maps on the frozen CLIP, optionally through the alignment heads -> ``cams.h5``
4. `refine`: CLIP + DINO affinity, column mask, propagation, boundary refinement -> ``refined.h5``, ``masks/*.png``
5. `train`: a segmentation decoder on pseudo-masks made on-line -> ``model.safetensors``
6. `predict`: label maps of a split or a folder of images -> ``predictions/*/*.png``
7. `evaluate` (``ssr eval``): scores against ground truth -> ``eval/*/report.json``

Further commands: `retrain` (a standard network on mmsegmentation), `ablation` (rows with one more component each), `export` and
`corrections` (``ssr import``), which write masks for other tools and read them back, `features` (``ssr show features``),
`show`, `report`, `status`, `doctor`, `sample`, `text`, and `merge` (outputs of shards). `launch` runs a per-image stage on
several devices or a Ray cluster. ``ssr labels`` needs no stage.
"""
