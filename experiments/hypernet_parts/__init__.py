"""What the experiment `hypernet` is made of: the classifier, its hypernetworks, the searches."""
