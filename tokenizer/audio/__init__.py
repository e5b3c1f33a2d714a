"""Reading, resampling and writing audio; forms of input; cut-off files; samples of pipes."""
