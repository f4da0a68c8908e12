"""The stages, in their order; reading this list is reading the toolkit.

1. `superpixels`: SLIC of every photo -> ``superpixels.h5``
2. `align`: CMPA, two heads that bring images and words together -> ``cmpa.safetensors``
3. `cams`: class activation maps on the frozen CLIP, through the heads where asked -> ``cams.h5``
4. `refine`: CLIP + DINO affinity, column mask, propagation, CRF -> ``refined.h5``, ``masks/*.png``
5. `train`: a segmentation model from pseudo-masks made on line -> ``model.safetensors``
6. `predict`: label maps of any photos from that model -> ``predictions/*/*.png``
7. `evaluate`: scores against ground truth -> ``eval/*/report.json``

Around them: `text` (text banks), `show` (pictures), `doctor` (before a run), `status` (after one).
"""
