"""Pictures of what the stages made: overlays, panels and one self-contained HTML page."""
