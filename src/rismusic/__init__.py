"""rismusic: several radio sources in 3-D in the near field of a RIS or antenna panel."""
