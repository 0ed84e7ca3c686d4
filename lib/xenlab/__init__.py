"""xenlab: a Xen howto that runs, step by step, over SSH."""
