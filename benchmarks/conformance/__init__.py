"""Laws of training systems, each measured on ours and on its peers; see README.md."""
