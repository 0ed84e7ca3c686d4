"""What a cell calls: a chapter, its steps, and how they are shown."""
