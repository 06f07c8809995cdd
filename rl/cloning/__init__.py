"""Parts of cloning: its loop, and the losses beside the flow's."""
