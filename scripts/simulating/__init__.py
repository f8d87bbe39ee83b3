"""A model of an endpoint's scaling: what waiting and money its policies cost, by the endpoint's own decisions."""
