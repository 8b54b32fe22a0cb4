"""What is made of many runs: reports, studies, pictures."""
