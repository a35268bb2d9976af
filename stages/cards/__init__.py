"""What stands beside shards and exported models for those who take them: cards, metadata, licences."""
