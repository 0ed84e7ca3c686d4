"""Many machines at a time: their sites, their runs on Dask's workers, how they are followed."""
