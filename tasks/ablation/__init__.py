"""Studies: the same training many times with one thing changed, with several seeds each.

What every study needs is here: `study` (declares the trainings), `train` (runs one), `seeds` (numbers over seeds),
`figure` (curves), `page` (the page's frame). What one study changes and says is a package of its own: `ffn`.
"""
