"""The memorisation audit: does a synthetic set repeat patients, and does the model give away whom it was trained on?"""
