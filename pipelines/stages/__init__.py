"""The stages in their order: superpixels, cams, refine, eval; and labels, text, show, doctor, status around them."""
