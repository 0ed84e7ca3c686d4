"""What a user writes: the parameters of a site, and why they are refused."""
